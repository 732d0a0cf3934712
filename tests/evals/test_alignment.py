"""Measures of alignment, each against its formula with loops."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from align_jax.errors import InputError
from align_jax.evals import alignment


def views(n: int = 30, words: int = 12, d: int = 6):
  rng = np.random.default_rng(0)
  return rng.normal(size=(n, d)), rng.normal(size=(words, d)) + 0.5


def cosine(a, b) -> float:
  return sum(p * q for p, q in zip(a, b)) / math.sqrt(
      sum(p * p for p in a) * sum(q * q for q in b))


def test_nearest_words_eq_4(monkeypatch):
  x, w = views()
  want = [max(range(len(w)), key=lambda j: cosine(v, w[j])) for v in x]
  assert alignment.nearest_words(x, w).tolist() == want
  # A word's length has no say in it.
  assert alignment.nearest_words(x, 9 * w).tolist() == want
  parts = alignment._parts
  monkeypatch.setattr(alignment, "_parts", lambda x: parts(x, 7))
  assert alignment.nearest_words(x, w).tolist() == want


def test_hit_rate_leaves_out_what_nothing_is_known_of():
  assert alignment.hit_rate(np.array([1, 2, 3, 4]),
                            [{1, 5}, {3}, set(), {4}]) == 2 / 3
  with pytest.raises(InputError, match="no visual token has a true word"):
    alignment.hit_rate(np.array([1]), [set()])


def test_modality_gap_eq_5():
  x, w = views()
  want = sum(min(math.dist(v, u) for u in w) for v in x) / len(x)
  assert alignment.modality_gap(x, w) == pytest.approx(want, rel=1e-6)
  assert alignment.modality_gap(w, w) == pytest.approx(0, abs=1e-6)


def test_tacs_eq_14():
  x, w = views()
  best = sorted((max(cosine(v, u) for u in w) for v in x), reverse=True)
  assert alignment.tacs(x, w) == pytest.approx(sum(best[:10]) / 10)
  assert alignment.tacs(x, w, top=3) == pytest.approx(sum(best[:3]) / 3)
  with pytest.raises(InputError, match="10 best tokens, but there are 4"):
    alignment.tacs(x[:4], w)


def test_norm_ratio():
  x, w = views()
  length = lambda a: sum(math.sqrt(sum(p * p for p in v))
                         for v in a) / len(a)
  assert alignment.norm_ratio(x, w) == pytest.approx(length(x) / length(w))


def test_frechet_distance_with_a_general_matrix_root():
  a, b = views(200, 300)
  ca, cb = (np.cov(x, rowvar=False) for x in (a, b))
  root = scipy.linalg.sqrtm(ca @ cb).real
  want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root)
  assert alignment.frechet(a, b) == pytest.approx(want, rel=1e-6)
  assert alignment.frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_mir_follows_its_steps():
  rng = np.random.default_rng(1)
  layers = [(rng.normal(size=(50, 4)), 2 + rng.normal(size=(61, 4)))
            for _ in range(3)]
  for visual, text in layers:
    visual[7], text[3] = 500, -500  # outliers

  def tamed(x):
    x = torch.tensor(x)
    norms = x.norm(dim=-1)
    far = (norms - norms.median()).abs() > 3 * norms.std()
    assert far.sum() == 1
    x[far] = x.median(dim=0).values
    return x.numpy()

  total = 0.0
  for visual, text in layers:
    scale = 1 / np.mean([math.sqrt((t * t).sum()) for t in text])
    total += alignment.frechet(tamed(scale * visual), tamed(scale * text))
  got = alignment.mir(*zip(*layers))
  assert got == pytest.approx(math.log10(total), rel=1e-9)
  # Scaling all of a layer changes nothing.
  scaled = [(5 * v, 5 * t) for v, t in layers]
  assert alignment.mir(*zip(*scaled)) == pytest.approx(got)


def test_mutual_knn():
  a, _ = views(40)
  rng = np.random.default_rng(2)
  rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
  assert alignment.mutual_knn(a, a @ rotation) == 1.0
  b = rng.normal(size=(40, 3))
  near = lambda x, i: set(sorted(
      (j for j in range(40) if j != i), key=lambda j: -cosine(x[i], x[j]))[:5])
  want = np.mean([len(near(a, i) & near(b, i)) / 5 for i in range(40)])
  assert alignment.mutual_knn(a, b, k=5) == pytest.approx(want)
  with pytest.raises(InputError, match="40 things in one view and 39"):
    alignment.mutual_knn(a, b[1:])
  with pytest.raises(InputError, match="10 nearest of 10"):
    alignment.mutual_knn(a[:10], b[:10])


def test_cka_by_its_kernels():
  a, _ = views(25)
  b = np.random.default_rng(3).normal(size=(25, 9))
  centre = np.eye(25) - 1 / 25
  hsic = lambda k, l: np.trace(k @ centre @ l @ centre)
  k, l = a @ a.T, b @ b.T
  want = hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))
  assert alignment.cka(a, b) == pytest.approx(want)
  assert alignment.cka(a, 3 * a) == pytest.approx(1)
