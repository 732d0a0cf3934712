"""The model of a run, for those who read runs: evaluation, inspection."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from align_jax.build import Parts, build, init_params
from align_jax.config import Config, MeshConfig, load_config
from align_jax.errors import InputError
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.train import manifest
from align_jax.train.checkpoint import Checkpoints
from align_jax.train.select import (
  base,
  flatten,
  join,
  split,
  trainables,
  unflatten,
)
from align_jax.validate import validate


@dataclasses.dataclass(frozen=True)
class Restored:
  """A run's model with the parameters of its last checkpoint.

  Attributes:
    config: of the run.
    parts: module, tokenizer, image processor.
    params: nested, in the run's dtypes, laid out on `mesh`.
    step: of the whole run.
    stage: the name of the stage that the checkpoint is of.
    finished: whether the run came to its end.
  """
  config: Config
  parts: Parts
  params: dict[str, Any]
  step: int
  stage: str
  finished: bool
  mesh: Mesh


def run_config(workdir: str | Path) -> Config:
  """The config a run was made with.

  Raises:
    InputError: there is no run in that folder.
  """
  path = Path(workdir) / "config.json"
  if not path.is_file():
    raise InputError(f"no run in {workdir}: it has no config.json; "
                     "`align-jax train` makes one")
  return validate(load_config(str(path)), str(path))


def restore(workdir: str | Path, mesh: Mesh | None = None) -> Restored:
  """Reads the last checkpoint of a run; of any mesh, onto any.

  Args:
    workdir: of the run.
    mesh: where to; by default one over all devices, parameters sharded over
      `fsdp` no further than the run's config says.

  Raises:
    InputError: no run, no checkpoint yet, or weights that changed since.
  """
  workdir = Path(workdir).absolute()
  config = run_config(workdir)
  checkpoints = Checkpoints(workdir, read_only=True)
  step = checkpoints.latest()
  if step is None:
    raise InputError(f"the run in {workdir} has no checkpoint yet")
  meta = checkpoints.meta(step)
  index = meta["stage"]
  mesh = mesh or fitting_mesh(config)
  parts = build(config.model, Layout(mesh))
  patterns = [p for stage in config.stages for p in stage.train]
  tree, origins = init_params(parts, mesh, patterns,
                              jax.random.key(config.seed))
  saved = manifest.read_json(workdir / "manifest.json")
  manifest.check_files(saved["files"], manifest.hash_files(origins))
  flat = flatten(tree)
  rates = [trainables(flat, s.train) for s in config.stages[:index + 1]]
  trained, frozen = split(flat, rates[index])
  earlier = {base(k) for r in rates[:index] for k in r}
  kept = {p: x for p, x in frozen.items()
          if manifest.must_keep(p, origins, earlier)}
  frozen |= checkpoints.restore_frozen(index, kept)
  trained = checkpoints.restore_trained(step, trained)
  checkpoints.close()
  return Restored(
      config=config, parts=parts, params=unflatten(join(trained, frozen)),
      step=step, stage=config.stages[index].name, mesh=mesh,
      finished=(workdir / "result.json").is_file())


def fitting_mesh(config: Config) -> Mesh:
  """The run's mesh if it fits the devices, otherwise one of all."""
  try:
    return make_mesh(config.mesh)
  except ValueError:
    return make_mesh(MeshConfig())
