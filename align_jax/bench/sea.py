"""C8: SEA's InfoNCE beside the plain one, and what SEA adds to a step."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.bench import Options
from align_jax.bench.cases import Ready, made_up, ready
from align_jax.bench.figure import Figure
from align_jax.bench.timing import paired, temporaries
from align_jax.build import build
from align_jax.config import (
  Config,
  ConnectorConfig,
  DataConfig,
  MeshConfig,
  ModelConfig,
  PartConfig,
  SourceConfig,
  StageConfig,
)
from align_jax.ops.info_nce import info_nce, plain_info_nce

PAIRS = (4096, 512)  # N and D
WORDS = 4096  # of the word list that made-up labels are from


def run(options: Options) -> Iterator[Figure]:
  """SEA's InfoNCE / the plain one, and a step with SEA / one without."""
  n, d = PAIRS
  rng = np.random.default_rng(options.seed)
  unit = lambda a: jnp.asarray(
      a / np.linalg.norm(a, axis=-1, keepdims=True), jnp.float32)
  x, t = (unit(rng.normal(size=(n, d))) for _ in range(2))
  keep = jnp.asarray(rng.random(n) < 0.9)
  scale = jnp.float32(14.0)
  rest = (t, keep, scale)

  forms = {"streamed": info_nce, "plain": plain_info_nce}
  # The words' side is a constant in SEA; token and temperature learn.
  both = {name: jax.jit(jax.value_and_grad(f, argnums=(0, 3)))
          for name, f in forms.items()}
  times = paired({name: functools.partial(f, x, *rest)
                  for name, f in both.items()}, options.rounds)
  shapes = f"N={n} D={d}"
  yield Figure("c8_time", "streamed / plain InfoNCE, with gradients to the "
               "visual tokens and the temperature", shapes=shapes,
               dtype="float32", goal=1.05,
               **times.ratio("streamed", "plain"))
  memory = {name: temporaries(jax.grad(f), x, *rest)
            for name, f in forms.items()}
  yield Figure("c8_memory", "temporaries of plain / streamed, gradient to the "
               "visual tokens", memory["plain"] / memory["streamed"], shapes,
               "float32", goal=8.0, higher=True,
               parts={f"{k}_MiB": b / 2 ** 20 for k, b in memory.items()})

  steps = {name: mini_step(name == "sea", options.seed)
           for name in ("sea", "without")}
  times = paired(steps, options.rounds)
  yield Figure("step_ratio", "a training step with SEA / one without",
               shapes=steps["sea"].shapes, dtype="float32", goal=1.05,
               **times.ratio("sea", "without"))


def mini_step(sea: bool, seed: int = 0) -> Ready:
  """A step of SEA's miniature (configs/mini/sea.py) on made-up rows.

  Captions of four images a row; the connector alone is trained.
  """
  tower = PartConfig(kind="clip", config=dict(
      image_size=96, patch_size=24, width=128, layers=4, heads=4,
      mlp_width=512))
  decoder = PartConfig(kind="llama", config=dict(
      vocab_size=2048, width=192, layers=4, heads=6, mlp_width=512))
  stage = StageConfig("pretrain", 1000, {"connector/*": 1e-3},
                      schedule="constant")
  config = Config(
      "mini", ModelConfig(tower=tower, connector=ConnectorConfig("mlp"),
                          decoder=decoder, dtype="float32",
                          frozen_dtype="float32", remat="none"),
      DataConfig(sources={"none": SourceConfig("llava")}, rows=12,
                 row_length=160, images_per_row=4, labels_per_row=96),
      (stage,), mesh=MeshConfig(data=1))
  if sea:
    stage = dataclasses.replace(
        stage, objectives={"next_token": 1.0, "sea": 1.0},
        train=stage.train | {"sea_log_scale": 1e-3})
    config = dataclasses.replace(
        config, stages=(stage,), objective_options={
            "sea": dict(labels="made-up", images=4)},
        model=dataclasses.replace(config.model, scalars={
            "sea_log_scale": 0.0}))
  batch = made_up(config, stage, build(config.model), seed)
  if sea:
    rng = np.random.default_rng(seed)
    extras = batch["extras"]
    extras["sea_words"][:] = rng.integers(0, WORDS, extras["sea_words"].shape)
    extras["sea_scores"][:] = rng.random(extras["sea_scores"].shape)
  return ready(config, seed, batch=batch)
