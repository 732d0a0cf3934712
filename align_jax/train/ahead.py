"""A stage's training step before there is any array: to compile, to measure."""

from typing import Any

import jax
from jax.sharding import Mesh

from align_jax.build import Parts, build, param_shapes
from align_jax.config import Config, StageConfig
from align_jax.data.batch import batch_sharding, batch_spec
from align_jax.objectives import make_objective
from align_jax.parallel.layout import Layout
from align_jax.train.job import declared
from align_jax.train.optimizer import make_optimizer, schedule
from align_jax.train.select import base, cut, trainables
from align_jax.train.state import TrainState, abstract_state
from align_jax.train.step import Step, make_step


def abstract_stage(config: Config, stage: StageConfig, mesh: Mesh,
                   ) -> tuple[Step, TrainState, dict[str, Any], Parts]:
  """The jitted step of a stage with the shapes that it takes.

  Args:
    config: of the run.
    stage: one of its stages.
    mesh: of devices that need not be here.

  Returns:
    (step, state, batch, parts): `step.lower(state, batch).compile()` compiles
    it; state and batch are ShapeDtypeStructs with their shardings.
  """
  config = config.of(stage)
  layout = Layout(mesh)
  parts = build(config.model, layout)
  patterns = [p for s in config.stages for p in s.train]
  shapes = param_shapes(parts, mesh, patterns)
  rates = trainables(shapes, stage.train)
  trained = {key: _cut(shapes[base(key)], cut(key)) for key in rates}
  frozen = {path: s for path, s in shapes.items() if path not in trained}
  tx = make_optimizer(stage, rates)
  state = abstract_state(trained, frozen, tx, mesh)
  objectives = {name: (make_objective(name, config, planned=True), weight)
                for name, weight in stage.objectives.items()}
  step = make_step(parts.model, objectives, tx, schedule(stage), state, layout,
                   accumulate=stage.accumulate, seed=config.seed,
                   measure=stage.measure, rates=rates)
  where = batch_sharding(mesh)
  batch = jax.tree.map(lambda s: s.update(sharding=where),
                       batch_spec(config.data, parts.image_size,
                                  declared(config, stage)))
  return step, state, batch, parts


def _cut(shape: jax.ShapeDtypeStruct,
         layers: slice | None) -> jax.ShapeDtypeStruct:
  """The shape of some layers of a stack."""
  if layers is None:
    return shape
  return shape.update(shape=(layers.stop - layers.start, *shape.shape[1:]))
