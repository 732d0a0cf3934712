"""Interleaved timing, and memory of compiled programs."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Timings:
  """Seconds of each variant, one a round; round i of all belongs together."""
  seconds: Mapping[str, np.ndarray]

  @property
  def rounds(self) -> int:
    return len(next(iter(self.seconds.values())))

  def median(self, name: str) -> float:
    return float(np.median(self.seconds[name]))

  def ratio(self, ours: str, theirs: str) -> dict[str, Any]:
    """The median of the paired ratios, as fields of a `Figure`."""
    return self._spread(self.seconds[ours] / self.seconds[theirs]) | dict(
        parts={f"{name}_seconds": self.median(name)
               for name in (ours, theirs)})

  def of(self, name: str) -> dict[str, Any]:
    """The median seconds of one variant, as fields of a `Figure`."""
    return self._spread(self.seconds[name]) | dict(unit="seconds")

  def rate(self, name: str, amount: float) -> dict[str, Any]:
    """The median of an amount a second, as fields of a `Figure`.

    Args:
      name: of a variant.
      amount: that it gets done in a round, in whatever the figure is of.
    """
    return self._spread(amount / self.seconds[name]) | dict(
        parts={f"{name}_seconds": self.median(name)})

  def _spread(self, samples: np.ndarray) -> dict[str, Any]:
    low, middle, high = np.percentile(samples, [25, 50, 75])
    return dict(value=float(middle), spread=(float(low), float(high)),
                rounds=self.rounds)


def paired(variants: Mapping[str, Callable[[], Any]], rounds: int,
           warm: int = 2) -> Timings:
  """Times variants in turns, in one process.

  The order within a round rotates, so that none always follows another.

  Args:
    variants: what to run; arrays it returns are waited for.
    rounds: timed rounds, after `warm` untimed ones.
    warm: rounds that compile and fill caches.
  """
  names = list(variants)
  for _ in range(warm):
    for name in names:
      jax.block_until_ready(variants[name]())
  seconds: dict[str, list[float]] = {name: [] for name in names}
  for turn in range(rounds):
    shift = turn % len(names)
    for name in names[shift:] + names[:shift]:
      start = time.perf_counter()
      jax.block_until_ready(variants[name]())
      seconds[name].append(time.perf_counter() - start)
  return Timings({name: np.asarray(s) for name, s in seconds.items()})


def temporaries(function: Callable[..., Any], *arguments: Any) -> int:
  """Bytes that the compiled function needs beside arguments and results.

  XLA parks temporaries in the buffers of results: a function whose results
  are large hides them, so ask for a gradient that is small.

  Args:
    function: to be compiled, not run.
    *arguments: arrays or ShapeDtypeStructs.
  """
  compiled = jax.jit(function).lower(*arguments).compile()
  return int(compiled.memory_analysis().temp_size_in_bytes)
