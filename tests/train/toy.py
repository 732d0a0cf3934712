"""A model, an objective and data of the real shapes' kinds, but tiny."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from align_jax.config import (
  Config,
  DataConfig,
  MeshConfig,
  ModelConfig,
  PartConfig,
  SourceConfig,
  StageConfig,
)
from align_jax.data.batch import local_rows, place
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.parallel.rules import shardings
from align_jax.train.job import Job
from align_jax.train.select import covers, flatten, unflatten

WIDTH, VOCAB, LENGTH, LAYERS, ROWS = 8, 16, 12, 3, 8


class Params(nn.Module):
  """Named arrays, drawn with a deviation of 0.3."""

  shapes: Any

  @nn.compact
  def __call__(self) -> dict[str, jax.Array]:
    return {name: self.param(name, lambda key, shape=shape:
                             0.3 * jax.random.normal(key, shape))
            for name, shape in self.shapes.items()}


class Tower(nn.Module):

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    layers = Params({"q_dk": (LAYERS, WIDTH, WIDTH),
                     "bias_k": (LAYERS, WIDTH)}, name="layers")()
    for i in range(LAYERS):
      x = x + jnp.tanh(x @ layers["q_dk"][i] + layers["bias_k"][i])
    return x


class Toy(nn.Module):
  """Predicts each token's target: embed, tower, connector, head."""

  @nn.compact
  def __call__(self, batch: dict[str, Any]) -> dict[str, jax.Array]:
    decoder = Params({"embed_vd": (VOCAB, WIDTH), "scale_d": (WIDTH,)},
                     name="decoder")()
    connector = Params({"w_dd": (WIDTH, WIDTH), "b_d": (WIDTH,)},
                       name="connector")()
    x = decoder["embed_vd"].astype(jnp.float32)[batch["tokens"]]
    x = Tower(name="tower")(x)
    x = x @ connector["w_dd"] + connector["b_d"]
    x = x * decoder["scale_d"].astype(jnp.float32)
    return {"logits": x @ decoder["embed_vd"].astype(jnp.float32).T}


class CrossEntropy:
  """A next-token loss, the obvious way."""

  coupled = False

  def __init__(self, config: Any = None):
    del config

  def weight(self, batch: dict[str, Any],
             rng: jax.Array | None = None,
             layout: Layout | None = None) -> jax.Array:
    return batch["loss_weights"].sum()

  def __call__(self, outputs: dict[str, Any], batch: dict[str, Any],
               rng: jax.Array, layout: Any) -> jax.Array:
    del layout
    logp = jax.nn.log_softmax(outputs["logits"])
    found = jnp.take_along_axis(logp, batch["targets"][..., None], -1)[..., 0]
    return -(found * batch["loss_weights"]).sum()


class Noise(CrossEntropy):
  """Depends on its random draws, row by row."""

  def __call__(self, outputs: dict[str, Any], batch: dict[str, Any],
               rng: jax.Array, layout: Any) -> jax.Array:
    noise = jax.vmap(lambda k: jax.random.normal(k, (LENGTH, VOCAB)))(rng)
    logits = outputs["logits"] + 0.1 * noise
    return super().__call__({"logits": logits}, batch, rng, layout)


class Rows:
  """Rows of a process out of an endless seeded stream; its state is JSON."""

  def __init__(self, rows: Any, seed: int = 0, poison: int = -1,
               taken: list[int] | None = None):
    self.rows, self.seed, self.poison = list(rows), seed, poison
    self.at, self.taken = 0, [] if taken is None else taken
    self.stats = {"quarantined": 0}

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([self.seed, self.at])
    batch = batch_of(rng)
    if self.at == self.poison:
      batch["loss_weights"][0, 0] = np.nan
    self.taken.append(self.at)
    self.at += 1
    return {k: v[self.rows] for k, v in batch.items()}

  def get_state(self) -> dict[str, Any]:
    return {"at": self.at}

  def set_state(self, state: dict[str, Any]) -> None:
    self.at = state["at"]


def batch_of(rng: np.random.Generator) -> dict[str, np.ndarray]:
  """A batch; the number of labels differs from row to row."""
  tokens = rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
  segments = np.ones((ROWS, LENGTH), np.int32)
  lengths = rng.integers(2, LENGTH, ROWS)
  weights = (np.arange(LENGTH) < lengths[:, None]).astype(np.float32)
  slots = rng.integers(0, 2, (ROWS, 2)).astype(np.int32)
  return {"tokens": tokens, "targets": (tokens * 3 + 1) % VOCAB,
          "loss_weights": weights, "segment_ids": segments,
          "image_segment_ids": slots}


def config(**changes: Any) -> Config:
  """Two stages: the connector, then the last layer and the connector."""
  given: dict[str, Any] = {
      "name": "toy",
      "model": ModelConfig(tower=PartConfig(kind="clip"),
                           decoder=PartConfig(kind="llama"),
                           dtype="float32", frozen_dtype="bfloat16"),
      "data": DataConfig(sources={"toy": SourceConfig("llava")}, rows=ROWS,
                         row_length=LENGTH, labels_per_row=LENGTH),
      "stages": (
          StageConfig("first", 6, {"connector/*": 1e-2},
                      {"ce": 1.0, "noise": 0.5}),
          StageConfig("second", 6, {"connector/*": 3e-3,
                                    "tower/layers[-1]/*": 1e-2}, {"ce": 1.0},
                      weight_decay=0.1, accumulate=2)),
      "mesh": MeshConfig(data=2), "log_every": 1, "save_every": 4,
  }
  return Config(**(given | changes))


def job(config: Config, weights: str = "", model: Any = None,
        **options: Any) -> Job:
  """The toy as a job.

  Args:
    config: of the run.
    weights: a file that the decoder's parameters are said to be from.
    model: instead of the toy.
    options: of `Rows`.
  """
  count = math.prod(dataclasses.astuple(config.mesh))
  mesh = make_mesh(config.mesh, jax.devices()[:count])
  rows = local_rows(mesh, config.data.rows)
  toy = model or Toy()

  def init() -> tuple[dict[str, Any], dict[str, str]]:
    batch = batch_of(np.random.default_rng(0))
    make = lambda: flatten(toy.init(jax.random.key(config.seed),
                                    batch)["params"])
    shapes = jax.eval_shape(make)
    masters = {path for path in shapes for stage in config.stages
               for p in stage.train if covers(p, path)}
    dtype = jnp.dtype(config.model.frozen_dtype)
    params = jax.jit(
        lambda: {k: v if k in masters else v.astype(dtype)
                 for k, v in make().items()},
        out_shardings=shardings(shapes, mesh))()
    origins = {k: f"{weights}:{k}" if weights and k.startswith("decoder")
               else "random" for k in params}
    return unflatten(params), origins

  return Job(
      layout=Layout(mesh), model=toy, init=init,
      batches=lambda stage: Rows(rows, config.stages.index(stage), **options),
      objective=lambda name, stage: {
          "ce": CrossEntropy, "noise": Noise}[name](config),
      place=lambda batch: place(batch, mesh))
