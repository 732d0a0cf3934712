"""Checkpoints, the one place that knows Orbax.

  WORKDIR/checkpoints/STEP     trained, opt_state, meta (stage, step, data)
  WORKDIR/frozen/STAGE         frozen arrays that no weights file can give back

STEP counts over all stages. A save that was asked for exists, or raises; one
that was cut short leaves a temporary folder that the next start removes.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from align_jax.errors import InputError
from align_jax.parallel.distributed import is_main
from align_jax.train.select import Flat
from align_jax.train.state import TrainState

Meta = dict[str, Any]

# Replicas share the writing of an array only where that is worth the slicing
# on the devices, which is compiled for each shape.
_SHARED_BYTES = 16 * 2**20


class Checkpoints:
  """The checkpoints of a run."""

  def __init__(self, workdir: str | Path, keep: int = 2,
               read_only: bool = False):
    """Opens the run's checkpoints and clears what a killed save left.

    Args:
      workdir: of the run.
      keep: how many of the latest are kept.
      read_only: clear nothing, for the run may be going on right now.
    """
    self.workdir = Path(workdir).absolute()
    training = ocp.training
    self._context = _context()
    # The default policy of Orbax skips a step while another is being saved;
    # here each save was decided on by the loop, and must exist.
    self._all = training.Checkpointer(
        self.workdir / "checkpoints", context=self._context,
        preservation_policy=training.preservation_policies.LatestN(keep),
        save_decision_policy=(
            training.save_decision_policies.FixedIntervalPolicy(1)),
        cleanup_tmp_directories=not read_only)
    self._saving: tuple[int, Any] | None = None

  def latest(self) -> int | None:
    """The last step saved; None in a new run."""
    found = self._all.latest
    return None if found is None else found.step

  def meta(self, step: int) -> Meta:
    """What was saved beside the arrays."""
    return self._all.load_checkpointables(step, {"meta": None})["meta"]

  def save(self, step: int, state: TrainState, meta: Meta) -> None:
    """Starts a save; the arrays may be donated as soon as this returns.

    Raises:
      RuntimeError: this save, or the one before it, did not come about.
    """
    self.wait()
    meta = {**meta, "stage_step": int(state.step)}
    response = self._all.save_checkpointables_async(step, {
        "trained": state.trained, "opt_state": _named(state.opt_state),
        "meta": meta}, force=True)
    if response is None:
      raise RuntimeError(f"the checkpoint of step {step} was not saved")
    self._saving = step, response

  def wait(self) -> None:
    """Waits for the save under way.

    Raises:
      RuntimeError: it did not come about.
    """
    if self._saving is None:
      return
    step, response = self._saving
    self._saving = None
    if response.result() is False:
      raise RuntimeError(f"the checkpoint of step {step} was not saved")

  def restore(self, step: int, state: TrainState) -> TrainState:
    """The saved state, laid out as `state` is; its frozen arrays are kept.

    Args:
      step: to restore.
      state: arrays, or only their shapes, dtypes and shardings; any mesh.

    Raises:
      InputError: the checkpoint holds other arrays.
    """
    target = {"trained": _abstract(state.trained),
              "opt_state": _abstract(_named(state.opt_state))}
    try:
      found = self._all.load_checkpointables(step, target)
    except (ValueError, KeyError) as error:
      raise InputError(f"checkpoint {step} of {self.workdir} does not fit "
                       f"the model: {error}") from error
    leaves = [leaf for _, leaf in sorted(found["opt_state"].items())]
    moments = jax.tree.unflatten(jax.tree.structure(state.opt_state), leaves)
    done = np.int32(self.meta(step)["stage_step"])
    return TrainState(
        step=jax.make_array_from_callback(
            (), state.step.sharding, lambda _: done),
        trained=found["trained"], frozen=state.frozen, opt_state=moments)

  def restore_trained(self, step: int, trained: Flat) -> Flat:
    """Only the trained arrays, laid out as `trained` is."""
    return self._all.load_checkpointables(
        step, {"trained": _abstract(trained)})["trained"]

  def save_frozen(self, stage: int, frozen: Flat) -> None:
    """Saves a stage's frozen arrays, and waits; nothing if there is none.

    Those of the stage before stay, for until this one's first checkpoint a
    restart begins there; older ones go.
    """
    if frozen:
      with self._context:
        ocp.save(self.workdir / "frozen" / str(stage), frozen, overwrite=True)
    if is_main():
      for old in range(stage - 1):
        shutil.rmtree(self.workdir / "frozen" / str(old), ignore_errors=True)

  def restore_frozen(self, stage: int, frozen: Flat) -> Flat:
    """The frozen arrays of a stage, laid out as the given ones are."""
    if not frozen:
      return {}
    return ocp.load(self.workdir / "frozen" / str(stage), _abstract(frozen))

  def close(self) -> None:
    """Waits for the save under way.

    Raises:
      RuntimeError: it did not come about; all is closed even so.
    """
    try:
      self.wait()
    finally:
      self._all.close()


def save_arrays(folder: Path, groups: Iterable[Flat]) -> None:
  """Saves flat arrays in a folder, for any reader of Orbax.

  Args:
    folder: where to; what lies there is replaced.
    groups: the arrays, some at a time: each group is written before the next
      is asked for.
  """
  folder = Path(folder).absolute()
  for old in (folder, folder.with_name(f"{folder.name}.partial_save")):
    if old.exists():
      shutil.rmtree(old)
  with _context():
    for arrays in groups:
      ocp.partial.save(folder, arrays)
      del arrays  # before the next ones are made
    ocp.partial.finalize(folder)


def gather_json(value: Any) -> list[Any]:
  """What each process holds, in the order of the processes."""
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int64(text.size))
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[:text.size] = text
  rows = multihost_utils.process_allgather(padded)
  return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes)]


def _context() -> ocp.Context:
  context = ocp.Context()
  handlers = ocp.handlers.local_registry(include_global_registry=True)
  handlers.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
  context.checkpointables.registry = handlers
  context.array.saving.min_slice_bytes_for_replica_parallel = _SHARED_BYTES
  return context


def _named(tree: Any) -> Flat:
  """Leaves in the tree's order, under names that say where they were."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {f"{i:05d}{jax.tree_util.keystr(path)}": leaf
          for i, (path, leaf) in enumerate(leaves)}


def _abstract(tree: Mapping[str, jax.Array]) -> dict[str, Any]:
  return {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
          for k, x in tree.items()}
