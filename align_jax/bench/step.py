"""A config's training step: time, tokens, utilisation, waiting, compiling."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from align_jax.bench import Options
from align_jax.bench.cases import Ready, ready
from align_jax.bench.figure import Figure
from align_jax.bench.speed import CONVENTION, flops_of, measured_peak, peak
from align_jax.errors import InputError
from align_jax.train.compilations import Compilations
from align_jax.train.job import assemble


def run(options: Options) -> Iterator[Figure]:
  """What a step of a config costs (--config), by the first stage's data."""
  if options.config is None:
    raise InputError("bench step: which? Give --config FILE")
  config = options.config
  with tempfile.TemporaryDirectory() as folder:
    batches = first = None
    if not options.synthetic:
      batches = assemble(config, Path(folder)).batches(config.stages[0])
      first = next(batches)
    case = ready(config, options.seed, batch=first)
    try:
      yield from _figures(case, batches, options)
    finally:
      if hasattr(batches, "close"):
        batches.close()


def _figures(case: Ready, batches: Any, options: Options) -> Iterator[Figure]:
  about: dict[str, Any] = dict(shapes=case.shapes,
                               dtype=case.config.model.dtype)
  compilations = Compilations("train_step")
  start = time.perf_counter()
  jax.block_until_ready(case())
  first = time.perf_counter() - start
  yield Figure("compile_seconds", "compilation of the step",
               compilations.seconds, unit="seconds", rounds=1,
               parts={"first_step_seconds": first}, **about)

  steps, waits, tokens, images = [], [], [], []
  batch, counted = case.batch, jax.device_get(
      {k: case.batch[k] for k in ("segment_ids", "image_segment_ids")})
  for turn in range(options.rounds + 2):
    start = time.perf_counter()
    loss = case(batch)
    tokens.append(np.count_nonzero(counted["segment_ids"]))
    images.append(np.count_nonzero(counted["image_segment_ids"]))
    if batches is not None:  # read while the devices compute
      reading = time.perf_counter()
      counted = next(batches)
      waits.append(time.perf_counter() - reading)
      batch = case.place(counted)
    jax.block_until_ready(loss)
    steps.append(time.perf_counter() - start)
    if turn == 1:  # the first two warm up
      steps, waits, tokens, images = [], [], [], []
  seconds = np.asarray(steps)
  timed = dict(rounds=options.rounds, **about)
  yield _median("step_seconds", "a training step, data included" if waits
                else "a training step on one made-up batch", seconds,
                "seconds", **timed)
  yield _median("tokens_per_second", "tokens that are no padding",
                np.asarray(tokens) / seconds, "tokens/s", **timed)
  yield _median("images_per_second", "images that are no empty slot",
                np.asarray(images) / seconds, "images/s", **timed)
  if waits:
    yield _median("input_wait_seconds", "of a step, reading the next batch",
                  np.asarray(waits), "seconds", **timed)
  flops = flops_of(case)
  if best := peak(case.mesh.size):
    yield _median("mfu", "model FLOPs / published bf16 peak of the mesh",
                  flops / seconds / best, "share", flops=CONVENTION, **timed)
  rate = measured_peak(case.config.model.dtype, case.mesh.size)
  yield _median(
      "share_of_matmul", "model FLOPs / speed of a square matrix product "
      "measured just now", flops / seconds / rate, "share", flops=CONVENTION,
      parts={"model_GFLOP": flops / 1e9, "matmul_GFLOP_per_s": rate / 1e9},
      **timed)


def _median(key: str, what: str, samples: np.ndarray, unit: str,
            **fields: Any) -> Figure:
  low, middle, high = np.percentile(samples, [25, 50, 75])
  return Figure(key, what, float(middle), unit=unit,
                spread=(float(low), float(high)), **fields)
