"""Clouds of vectors, beside the slow way."""

import itertools

import numpy as np
import pytest

from align_jax.inspect import geometry


def test_cloud_computed_slowly():
  x = np.random.default_rng(0).normal(size=(7, 5)) + 1
  got = geometry.cloud(x)
  norms = [np.sqrt((row ** 2).sum()) for row in x]
  cosines = [x[i] @ x[j] / norms[i] / norms[j]
             for i, j in itertools.permutations(range(7), 2)]
  assert got.norm == pytest.approx(np.mean(norms))
  assert got.norm_percentiles[2] == pytest.approx(np.median(norms))
  assert got.cosine == pytest.approx(np.mean(cosines))
  assert got.mean_norm == pytest.approx(np.linalg.norm(x.mean(0)))


def test_equal_vectors_are_alike():
  assert geometry.cloud(np.ones((3, 4))).cosine == pytest.approx(1.0)
  assert geometry.cloud(np.ones((1, 4))).cosine == 1.0


def test_compare():
  rng = np.random.default_rng(1)
  text = rng.normal(size=(50, 8)) + 1
  got = geometry.compare(2 * text[:10], text)
  assert got["norm_ratio"] == pytest.approx(
      2 * np.linalg.norm(text[:10], axis=1).mean()
      / np.linalg.norm(text, axis=1).mean())
  assert 0.8 < got["cosine_of_means"] <= 1
