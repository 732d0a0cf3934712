"""What the loop needs of a model and its data, made from a config."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax

from align_jax.config import Config, StageConfig
from align_jax.errors import ConfigError, InputError
from align_jax.parallel.layout import Layout


class Batches(Protocol):
  """Batches of this process's rows, endlessly; see data/pipeline.py."""

  stats: dict[str, float]

  def __next__(self) -> dict[str, Any]:
    ...

  def get_state(self) -> dict[str, Any]:
    """Plain JSON: where the batch last taken ended."""

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues there; `state` may hold the streams of other processes."""


@dataclasses.dataclass(frozen=True)
class Job:
  """A model with its data on a mesh.

  Attributes:
    layout: with the mesh.
    model: `model.apply({"params": tree}, batch) -> outputs`.
    init: -> (nested parameters, each in its shards; path -> its origin).
      Origins "FILE:KEY; FILE:KEY" name what is wholly in weights files.
    batches: stage -> its data, from the start.
    objective: (name, stage) -> objective.
    place: this process's rows -> global arrays.
  """
  layout: Layout
  model: Any
  init: Callable[[], tuple[dict[str, Any], dict[str, str]]]
  batches: Callable[[StageConfig], Batches]
  objective: Callable[[str, StageConfig], Any]
  place: Callable[[dict[str, Any]], dict[str, jax.Array]]


def declared(config: Config,
             stage: StageConfig) -> dict[str, jax.ShapeDtypeStruct]:
  """The fields `extras` that a stage's connector and objectives ask for.

  Raises:
    InputError: two of them mean different things by one name.
  """
  from align_jax.connectors import CONNECTORS
  from align_jax.objectives import OBJECTIVES

  config = config.of(stage)
  askers = [OBJECTIVES.get(name) for name in stage.objectives]
  if config.model.kind == "vlm":
    askers.append(CONNECTORS.get(config.model.connector.kind))
  found: dict[str, jax.ShapeDtypeStruct] = {}
  for asker in askers:
    fields = asker.extras(config) if hasattr(asker, "extras") else {}
    for name, spec in fields.items():
      if (known := found.setdefault(name, spec)) != spec:
        raise InputError(f"extras[{name!r}] is declared twice: as {known} "
                         f"and, by {asker.__name__}, as {spec}")
  return found


def assemble(config: Config, workdir: Path) -> Job:
  """The job of a config: mesh, model, pipeline.

  Raises:
    ConfigError: heads that the mesh's tensor axis does not divide.
  """
  from align_jax import build
  from align_jax.data import batch as batches
  from align_jax.data.features import FeatureReader
  from align_jax.data.pipeline import Pipeline
  from align_jax.objectives import make_objective
  from align_jax.parallel.mesh import make_mesh
  from align_jax.plan.check import head_faults

  mesh = make_mesh(config.mesh)
  layout = Layout(mesh)
  parts = build.build(config.model, layout)
  if faults := head_faults(parts, mesh.shape["tensor"]):
    raise ConfigError(config.name, faults)
  patterns = [p for stage in config.stages for p in stage.train]
  reader = parts.reader(config.data)
  if config.data.features:
    reader = FeatureReader(config.data.features, config.model.tower,
                           parts.specs.get("tower"))
  suffix = (f".{jax.process_index()}" if jax.process_count() > 1 else "")
  opened: dict[str, Any] = {}

  def stage_batches(stage: StageConfig) -> Iterator[dict[str, Any]]:
    # Each stage has an order of its own.
    seed = 1000 * config.seed + config.stages.index(stage)
    data = config.of(stage).data
    pipeline = Pipeline(data, stage.data, parts.renderer(data), reader, seed,
                        quarantine=workdir / f"quarantine{suffix}.jsonl",
                        sources=opened, extras=declared(config, stage),
                        annotate=parts.annotate)
    opened.update(pipeline.sources)
    return pipeline.rows_for(batches.local_rows(mesh, data.rows))

  return Job(
      layout=layout, model=parts.model,
      init=lambda: build.init_params(parts, mesh, patterns,
                                     jax.random.key(config.seed)),
      batches=stage_batches,
      objective=lambda name, stage: make_objective(name, config.of(stage)),
      place=lambda batch: batches.place(batch, mesh))
