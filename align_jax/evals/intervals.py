"""How sure a figure is: intervals over images and over seeds."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats


def bootstrap(
    columns: dict[str, Sequence[float]],
    groups: Sequence[int],
    statistic: Callable[[dict[str, np.ndarray]], np.ndarray],
    *,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
  """Percentile interval of a statistic of means, redrawing whole groups.

  Questions about one image fail together, so it is images that are redrawn.

  Args:
    columns: name -> one value a question, such as 1 for a right answer.
    groups: the image of each question.
    statistic: from the columns' means f64[samples] to f64[samples].
    level: of the interval.
    samples: number of redraws.
    seed: of the draws.

  Returns:
    (low, high).
  """
  _, group = np.unique(np.asarray(groups), return_inverse=True)
  n_groups = int(group.max()) + 1
  sizes = np.bincount(group, minlength=n_groups).astype(np.float64)
  sums = {k: np.bincount(group, weights=np.asarray(v, np.float64),
                         minlength=n_groups) for k, v in columns.items()}
  rng = np.random.default_rng(seed)
  # How often each group is drawn is multinomial; one row a redraw.
  times = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), samples)
  total = times @ sizes
  values = statistic({k: (times @ s) / total for k, s in sums.items()})
  low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def bootstrap_mean(values: Sequence[float], groups: Sequence[int],
                   **options: float) -> tuple[float, float]:
  """`bootstrap` of a plain mean."""
  return bootstrap({"x": values}, groups, lambda means: means["x"], **options)


@dataclasses.dataclass(frozen=True)
class PairedT:
  """A paired comparison over seeds.

  Attributes:
    mean: of the differences.
    low: of the interval; NaN with fewer than two pairs, as all that follows.
    high: of the interval.
    detectable: the smallest true difference that this many pairs, spread as
      these are, would have shown four times in five.
    n: pairs.
  """
  mean: float
  low: float
  high: float
  detectable: float
  n: int


def paired_t(differences: Sequence[float], level: float = 0.95) -> PairedT:
  """Student's interval of the mean of paired differences.

  Raises:
    ValueError: there are no differences.
  """
  d = np.asarray(differences, np.float64)
  if not d.size:
    raise ValueError("no pairs to compare")
  if d.size == 1:
    nan = float("nan")
    return PairedT(float(d[0]), nan, nan, nan, 1)
  error = d.std(ddof=1) / math.sqrt(d.size)
  t = stats.t.ppf(0.5 + level / 2, d.size - 1)
  power = stats.t.ppf(0.8, d.size - 1)
  return PairedT(float(d.mean()), float(d.mean() - t * error),
                 float(d.mean() + t * error), float((t + power) * error),
                 int(d.size))
