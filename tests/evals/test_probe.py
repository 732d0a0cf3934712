"""The linear probe, beside scikit-learn and on what it cannot read."""

import numpy as np
import pytest

from align_jax.evals import probe


def _blobs(n: int, noise: float, seed: int):
  rng = np.random.default_rng(seed)
  names = np.array(["blue", "gray", "red"])[rng.integers(0, 3, n)]
  centre = {"blue": [3, 0, 0, 0], "gray": [0, 3, 0, 0], "red": [0, 0, 3, 0]}
  x = np.array([centre[k] for k in names]) + noise * rng.normal(size=(n, 4))
  return x * [1, 100, 0.01, 1], names  # scales a probe must not care about


def test_pools_the_class_token_beside_the_patches():
  x = np.arange(24.0).reshape(2, 3, 4)
  np.testing.assert_array_equal(probe.pool(x, False), x.mean(1))
  got = probe.pool(x, True)
  assert got.shape == (2, 8)
  np.testing.assert_array_equal(got[:, :4], x[:, 0])
  np.testing.assert_array_equal(got[:, 4:], (x[:, 1] + x[:, 2]) / 2)


def test_reads_what_is_linear():
  accuracy = probe.probe_accuracy(*_blobs(300, 0.5, 0), *_blobs(200, 0.5, 1))
  assert accuracy > 0.98


def test_reads_no_more_than_there_is():
  train, names = _blobs(300, 0.5, 0)
  test, test_names = _blobs(300, 0.5, 1)
  shuffled = np.random.default_rng(2).permutation(names)
  assert probe.probe_accuracy(train, shuffled, test, test_names) < 0.5


def test_agrees_with_scikit_learn():
  linear_model = pytest.importorskip("sklearn.linear_model")
  x, names = _blobs(400, 2.0, 0)
  x = (x - x.mean(0)) / x.std(0)
  classes = np.unique(names, return_inverse=True)[1]
  w, b = probe.fit_probe(x, classes, 3, penalty=1e-3)
  # Their objective: C * sum of losses + |w|^2 / 2.
  theirs = linear_model.LogisticRegression(
      C=1 / (2 * 1e-3 * len(x)), max_iter=1000).fit(x, classes)
  agree = (x @ w + b).argmax(-1) == theirs.predict(x)
  assert agree.mean() > 0.99


def test_unseen_class_counts_as_wrong():
  x, names = _blobs(90, 0.1, 0)
  assert probe.probe_accuracy(x, names, x, ["teal"] * 90) == 0.0
