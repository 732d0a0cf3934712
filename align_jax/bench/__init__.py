"""Benchmarks: ratios with goals, and what a step costs.

A benchmark is one file here plus one line in `BENCHMARKS`: a function

  run(options: Options) -> Iterable[Figure]

whose docstring's first line says what it compares. Absolute times of a shared
machine wander, so two things are compared inside one process, in turns, and
the figure is the median of the paired ratios (see `timing.paired`). Every
`Figure` says its shapes, dtype, rounds and spread; the report adds devices
and versions.
"""

import dataclasses

from align_jax.config import Config
from align_jax.registry import Registry


@dataclasses.dataclass(frozen=True)
class Options:
  """What the command line asks of a benchmark.

  Attributes:
    rounds: pairs that are timed.
    config: of a run, for benchmarks of a whole step; None for shapes of the
      benchmark's own.
    versus: "hf" where transformers + torch shall run beside it.
    synthetic: made-up batches instead of a config's data.
    seed: of random weights and batches.
  """
  rounds: int = 15
  config: Config | None = None
  versus: str = ""
  synthetic: bool = False
  seed: int = 0


BENCHMARKS = Registry("benchmark", {
    "chunked_loss": "align_jax.bench.chunked_loss:run",
    "connectors": "align_jax.bench.connectors:run",
    "first_step": "align_jax.bench.first_step:run",
    "generate": "align_jax.bench.generate:run",
    "images": "align_jax.bench.images:run",
    "loader": "align_jax.bench.loader:run",
    "sea": "align_jax.bench.sea:run",
    "step": "align_jax.bench.step:run",
    "train_step": "align_jax.bench.train_step:run",
    "vocab_mix": "align_jax.bench.vocab_mix:run",
})
