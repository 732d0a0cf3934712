"""C10: the first step with its compilation, and none after it."""

import time
from collections.abc import Iterator

import jax
import numpy as np

from align_jax.bench import Options
from align_jax.bench.cases import made_up, ready, tiny_llava
from align_jax.bench.figure import Figure
from align_jax.bench.versus_torch import TrainStep, llava, no_caches
from align_jax.train.compilations import Compilations

# How many batches of other contents the step meets after its first.
MIXED = 100


def run(options: Options) -> Iterator[Figure]:
  """The first step with compilation / torch.compile's; later compilations."""
  config = options.config or tiny_llava(8192)
  case = ready(config, options.seed)
  seen = Compilations("train_step")
  start = time.perf_counter()
  jax.block_until_ready(case())
  ours = time.perf_counter() - start
  about = dict(shapes=case.shapes, dtype=config.model.dtype)
  if options.versus:
    batch = made_up(config, case.stage, case.parts, options.seed)
    theirs = TrainStep(llava(config, case.parts), config, batch, case.parts,
                       compiled=True)
    with no_caches():
      start = time.perf_counter()
      theirs()
      other = time.perf_counter() - start
    yield Figure(
        "c10", "first step / first step of torch.compile, compilation "
        "included, nothing cached", ours / other, goal=0.1, rounds=1,
        parts={"ours_seconds": ours, "torch_compile_seconds": other}, **about)
  else:
    yield Figure("first_step_seconds", "first step with its compilation",
                 ours, unit="seconds", rounds=1, **about)
  rng = np.random.default_rng(options.seed)
  for turn in range(MIXED):
    mixed = made_up(config, case.stage, case.parts, options.seed + turn + 1)
    if turn % 3 == 0:  # no image at all
      mixed["image_segment_ids"][:] = 0
      mixed["visual_index"][:] = -1
    end = rng.integers(1, config.data.row_length)
    mixed["segment_ids"][:, end:] = turn % 2
    case(case.place(mixed))
  yield Figure(
      "c10_recompilations", f"compilations of the step over {MIXED} batches, "
      "with and without images, of any fill, beyond the first",
      seen.count - 1, unit="compilations", goal=0, **about)
