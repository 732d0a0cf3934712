"""What to change so that a stage fits: the smallest change that should do.

Tried in this order, by prediction: rows spread over fsdp instead of copied
over data; what is kept for the backward pass; more microbatches; a larger
slice of the same chip; a chip with more memory.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from align_jax.build import build
from align_jax.config import Config, StageConfig
from align_jax.errors import InputError
from align_jax.parallel import topology
from align_jax.parallel.layout import AXES
from align_jax.parallel.mesh import abstract_mesh, make_mesh, mesh_shape
from align_jax.plan import hlo
from align_jax.plan.check import check, stage_named
from align_jax.plan.chips import CHIPS
from align_jax.plan.compiled import compiled
from align_jax.plan.memory import predict
from align_jax.plan.stage import Target, judged_memory, target
from align_jax.train.ahead import abstract_stage
from align_jax.validate import validate

# A run wants a tenth to spare, and a prediction misses by a twentieth; by far
# more where `memory.uncounted` names something.
_FULL = 0.85


@dataclasses.dataclass(frozen=True)
class Advice:
  """A change of the command line.

  Attributes:
    flags: to add to it.
    why: in words.
    share: of the memory that is then predicted to be used.
  """
  flags: tuple[str, ...]
  why: str
  share: float


def advise(config: Config, stage: StageConfig, where: Target,
           times: float = 1.0) -> Advice | None:
  """The first change with which the stage is predicted to fit; or None.

  Args:
    config: of the run.
    stage: that does not fit.
    where: it was planned for.
    times: how many times the predicted bytes a compiler found; changes are
      predicted to need as many times theirs, if that is more.
  """
  for flags, why, changed, place in _changes(config, stage, where):
    share = _share(changed, stage.name, place)
    if share is not None and share * max(times, 1.0) <= _FULL:
      return Advice(flags, why, share * max(times, 1.0))
  return None


def _share(config: Config, stage: str, where: Target) -> float | None:
  """The share of memory that is predicted; None for a config that no plan
  would be made of."""
  try:
    config = validate(config)
    axes = check(config, build(config.model), where.count)
    chosen = stage_named(config, stage)
    config = config.of(chosen)
    mesh = abstract_mesh(axes, where.platform)
    _, state, batch, parts = abstract_stage(config, chosen, mesh)
  except ValueError:
    return None
  memory = predict(config, chosen, parts, state, batch, mesh, where.tiled)
  return memory.total / where.hbm


Change = tuple[tuple[str, ...], str, Config, Target]


def _changes(config: Config, stage: StageConfig,
             where: Target) -> Iterator[Change]:
  index = config.stages.index(stage)
  axes = _axes(config, where.count)
  if axes["data"] * axes["replica"] > 1:
    wide = axes["fsdp"] * axes["data"] * axes["replica"]
    flags = ("mesh.replica=1", "mesh.data=1", f"mesh.fsdp={wide}")
    yield (flags, "spreads parameters and optimizer over all devices instead "
           "of copying them", _with_mesh(config, fsdp=wide), where)
  if config.model.remat != "full":
    yield (("model.remat=full",), "keeps a layer's input alone for the "
           "backward pass", dataclasses.replace(
               config, model=dataclasses.replace(config.model, remat="full")),
           where)
  for times in (2, 4, 8, 16):
    more = stage.accumulate * times
    stages = tuple(dataclasses.replace(s, accumulate=more) if i == index
                   else s for i, s in enumerate(config.stages))
    yield ((f"stages[{index}].accumulate={more}",),
           "computes fewer rows at a time",
           dataclasses.replace(config, stages=stages), where)
  kind, _ = topology.parse(where.topology)
  if kind not in CHIPS:
    return
  for chip in (kind, *sorted((c for c in CHIPS if CHIPS[c].hbm
                              > CHIPS[kind].hbm),
                             key=lambda c: CHIPS[c].hbm)):
    for shape in topology.SLICES[chip]:
      name = f"{chip}:{shape}"
      count = topology.size(name)
      if count < where.count or (chip == kind and count == where.count):
        continue
      yield _on(config, axes, name, count)


def _on(config: Config, axes: dict[str, int], name: str,
        count: int) -> Change:
  """The config on another slice: fsdp takes the additional devices."""
  chip = CHIPS[topology.parse(name)[0]]
  fsdp = count // (axes["tensor"] * axes["context"])
  changed = _with_mesh(config, fsdp=fsdp, tensor=axes["tensor"],
                       context=axes["context"])
  flags = [f"--topology {name}", "mesh.replica=1", "mesh.data=1",
           f"mesh.fsdp={fsdp}"]
  why = f"{count} chips of {chip.hbm / 2**30:.0f} GiB"
  most = max(s.accumulate for s in config.stages)
  if config.data.rows % (fsdp * most):
    rows = math.ceil(config.data.rows / (fsdp * most)) * fsdp * most
    changed = dataclasses.replace(
        changed, data=dataclasses.replace(config.data, rows=rows))
    flags.append(f"data.rows={rows}")
    why += f", and the batch from {config.data.rows} to {rows} rows"
  return (tuple(flags), why, changed,
          Target(name, count, None, chip, chip.hbm))


def _with_mesh(config: Config, fsdp: int, **others: int) -> Config:
  return dataclasses.replace(config, mesh=dataclasses.replace(
      config.mesh, replica=1, data=1, fsdp=fsdp, **others))


def _axes(config: Config, count: int) -> dict[str, int]:
  return dict(zip(AXES, mesh_shape(config.mesh, count)))


def roomier(where: Target) -> Target | None:
  """As many devices with the most memory, to learn what does not fit."""
  kind, _ = topology.parse(where.topology)
  for chip in sorted(CHIPS, key=lambda c: -CHIPS[c].hbm):
    if kind not in CHIPS or CHIPS[chip].hbm <= CHIPS[kind].hbm:
      continue
    for shape in topology.SLICES[chip]:
      if topology.size(f"{chip}:{shape}") == where.count:
        return target(f"{chip}:{shape}")
  return None


def buffers_elsewhere(config: Config, stage: StageConfig, where: Target,
                      kept: str = "") -> dict[str, Any]:
  """The buffers of a stage that its chip refused, from a roomier chip.

  Args:
    config: of the run.
    stage: of the config.
    where: what refused it.
    kept: a folder of compiled programs, see `compiled`.

  Returns:
    used_bytes, spare_share (negative) and largest_buffers, and `seen_on`,
    which chip they were read from; nothing where no chip has room, and
    the predicted ones stay.
  """
  place = roomier(where)
  if place is None or place.devices is None:
    return {}
  try:
    mesh = make_mesh(config.mesh, place.devices)
    step, state, batch, _ = abstract_stage(config, stage, mesh)
    found = compiled(step.lower(state, batch), place.topology, kept)
  except InputError:
    return {}
  if found.refusal:
    return {}
  seen = judged_memory(found, hlo.parse(found.text), place, state, batch)
  return {"used_bytes": seen["used_bytes"],
          "spare_share": 1 - seen["used_bytes"] / where.hbm,
          "largest_buffers": seen["largest_buffers"],
          "seen_on": seen["seen_on"]}
