"""Intervals against scipy, and against drawing groups one by one."""

import math

import numpy as np
import pytest
from scipy import stats

from align_jax.evals import intervals


def test_bootstrap_redraws_whole_groups():
  # Ten questions an image, all right or all wrong: the interval must be that
  # of 40 images, not that of 400 questions.
  rng = np.random.default_rng(0)
  per_image = rng.integers(0, 2, 40)
  low, high = intervals.bootstrap_mean(
      np.repeat(per_image, 10), np.repeat(np.arange(40), 10))
  p = per_image.mean()
  half = 1.96 * math.sqrt(p * (1 - p) / 40)
  assert low == pytest.approx(p - half, abs=0.03)
  assert high == pytest.approx(p + half, abs=0.03)


def test_bootstrap_equals_the_slow_way():
  rng = np.random.default_rng(1)
  groups = rng.integers(0, 9, 60)
  values = rng.random(60)
  got = intervals.bootstrap_mean(values, groups, samples=4000, seed=3)
  names = np.unique(groups)
  draws = []
  for _ in range(4000):
    picked = rng.choice(names, len(names))
    draws.append(np.concatenate([values[groups == g] for g in picked]).mean())
  np.testing.assert_allclose(got, np.quantile(draws, [0.025, 0.975]),
                             atol=0.01)


def test_bootstrap_is_seeded():
  args = [1, 0, 1, 1], [0, 0, 1, 2]
  assert (intervals.bootstrap_mean(*args, seed=5)
          == intervals.bootstrap_mean(*args, seed=5))


def test_paired_t_is_scipys():
  d = [0.03, 0.05, 0.01, 0.04, 0.02]
  got = intervals.paired_t(d)
  want = stats.ttest_1samp(d, 0).confidence_interval()
  np.testing.assert_allclose((got.low, got.high), (want.low, want.high))
  assert got.n == 5 and got.mean == pytest.approx(0.03)


def test_detectable_difference_has_the_power_it_claims():
  # Draw many studies whose true difference is the detectable one: about four
  # in five must exclude zero.
  rng = np.random.default_rng(0)
  # What a study with unit spread would call detectable.
  d = np.array([-1.0, 0.0, 1.0, 0.5, -0.5])
  d = d / d.std(ddof=1)
  detectable = intervals.paired_t(d).detectable
  seen = [intervals.paired_t(rng.normal(detectable, 1, 5)).low > 0
          for _ in range(500)]
  assert 0.7 < np.mean(seen) < 0.9


def test_one_seed_has_no_interval():
  got = intervals.paired_t([0.1])
  assert got.mean == pytest.approx(0.1) and math.isnan(got.low)
  with pytest.raises(ValueError, match="no pairs"):
    intervals.paired_t([])
