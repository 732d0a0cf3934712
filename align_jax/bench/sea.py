"""C8: SEA's InfoNCE beside the plain one, and what SEA adds to a step."""

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
from align_jax.config import load_config
from align_jax.ops.info_nce import info_nce, plain_info_nce
from align_jax.validate import validate

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
  """A step of SEA's miniature on made-up features: its first stage.

  The config is configs/mini/sea.py itself, arm "recommended" or "off"; tower
  and language model have the sizes that they are trained at there.
  """
  given = load_config(f"mini/sea:arm={'recommended' if sea else 'off'}")
  given.model.tower = load_config("mini/icon_clip").model.tower
  given.model.decoder = load_config("mini/lm").model.decoder
  config = validate(given)
  stage, parts = config.stages[0], build(config.model)
  batch = made_up(config, stage, parts, seed)
  tower, rng = parts.model.tower.config, np.random.default_rng(seed)
  # Features are kept, so that the tower does not run (data.features).
  batch["images"] = rng.normal(size=(
      *batch["image_segment_ids"].shape, tower.patches, tower.width)).astype(
          np.float32)
  # Each of a row's images is a sample's only one there, and has its labels.
  batch["image_segment_ids"][:] = 1 + np.arange(config.data.images_per_row)
  if sea:
    extras = batch["extras"]
    extras["sea_words"][:] = rng.integers(0, WORDS, extras["sea_words"].shape)
    extras["sea_scores"][:] = rng.random(extras["sea_scores"].shape)
  return ready(config, seed, batch=batch)
