"""SEA's relatives, each against its formula with loops."""

import math

import jax
import numpy as np
import pytest

from align_jax.config import MeshConfig
from align_jax.objectives import OBJECTIVES
from align_jax.objectives.pooled import pool, present
from align_jax.objectives.vlap import sinkhorn
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh

B, L, N, T, V, D = 4, 10, 2, 4, 14, 8


def case():
  """Rows of two samples; one without an image, one without a label; and a
  row whose first two samples, of three, have no image."""
  rng = np.random.default_rng(0)
  segments = np.repeat([[1] * 5 + [2] * 5], B, 0).astype(np.int32)
  weights = np.zeros((B, L), np.float32)
  weights[:, [2, 3, 7]] = 1
  weights[1, 7] = 0
  slots = np.array([[1, 2]] * B, np.int32)
  slots[2] = [1, 0]
  segments[3], slots[3] = [1] * 2 + [2] * 4 + [3] * 4, [3, 3]
  batch = {"segment_ids": segments, "loss_weights": weights,
           "image_segment_ids": slots,
           "targets": rng.integers(0, V, (B, L)).astype(np.int32)}
  outputs = {
      "visual_tokens": rng.normal(size=(B, N, T, D)).astype(np.float32),
      "embed_vd": rng.normal(size=(V, D)).astype(np.float32)}
  return batch, outputs


def slow_pairs(batch, outputs):
  """(image, text) of every sample that has both."""
  found = []
  for b in range(B):
    for s in (1, 2, 3):
      images = [outputs["visual_tokens"][b, i] for i in range(N)
                if batch["image_segment_ids"][b, i] == s]
      words = [outputs["embed_vd"][batch["targets"][b, l]] for l in range(L)
               if batch["segment_ids"][b, l] == s
               and batch["loss_weights"][b, l]]
      if images and words:
        found.append((np.concatenate(images).mean(0), np.mean(words, 0)))
  return found


def unit(x):
  return x / np.linalg.norm(x)


def test_samples_are_pooled_one_by_one():
  batch, outputs = case()
  got = pool(outputs, batch, Layout())
  keep = np.asarray(got.keep)
  assert keep.tolist() == [[True, True], [True, False], [True, False],
                           [True, False]]
  np.testing.assert_array_equal(keep, present(batch))
  for (image, text), a, t in zip(slow_pairs(batch, outputs),
                                 np.asarray(got.image)[keep],
                                 np.asarray(got.text)[keep]):
    np.testing.assert_allclose(a, image, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(t, text, rtol=1e-5, atol=1e-6)


def make(name):
  return OBJECTIVES.get(name)(None)


def test_cg_vlm_contrasts_images_with_captions():
  batch, outputs = case()
  pairs = slow_pairs(batch, outputs)
  s = np.array([[unit(a) @ unit(t) / 0.07 for _, t in pairs]
                for a, _ in pairs])
  want = sum(0.5 * (np.log(np.exp(s[i]).sum()) + np.log(np.exp(s[:, i]).sum()))
             - s[i, i] for i in range(len(pairs)))
  objective = make("cg_vlm")
  assert float(objective.weight(batch)) == len(pairs) == 5
  assert float(objective(outputs, batch, None, Layout())) == pytest.approx(
      want, rel=1e-4)


def test_sinkhorn_uses_every_code_equally():
  rng = np.random.default_rng(1)
  scores = rng.uniform(-1, 1, (6, 5)).astype(np.float32)
  keep = np.array([1, 1, 0, 1, 1, 1], bool)
  got = np.asarray(sinkhorn(scores, keep, epsilon=0.5, turns=60))
  np.testing.assert_allclose(got[keep].sum(1), 1, rtol=1e-4)
  np.testing.assert_allclose(got.sum(0), keep.sum() / 5, rtol=1e-3)
  assert not got[2].any()
  # Three turns, word for word.
  q = np.exp(scores[keep].astype(np.float64) / 0.5)
  for _ in range(3):
    q /= q.sum(0, keepdims=True) * 5
    q /= q.sum(1, keepdims=True) * 5
  np.testing.assert_allclose(
      np.asarray(sinkhorn(scores, keep, 0.5, 3))[keep], 5 * q, rtol=1e-4)
  sharp = np.asarray(sinkhorn(scores, keep, 0.01, 3))
  assert np.isfinite(sharp).all()


def test_vlap_predicts_the_other_sides_words():
  batch, outputs = case()
  pairs = slow_pairs(batch, outputs)
  codes = np.array([unit(c) for c in outputs["embed_vd"]], np.float64)
  sides = [np.array([unit(p[i]) @ codes.T for p in pairs]) for i in (0, 1)]

  def assign(scores):
    q = np.exp(scores / 0.01)
    for _ in range(3):
      q /= q.sum(0, keepdims=True) * V
      q /= q.sum(1, keepdims=True) * len(pairs)
    return q * len(pairs)

  def log_p(scores):
    z = scores / 0.01
    return z - np.array([[math.log(np.exp(r - r.max()).sum()) + r.max()]
                         for r in z])

  want = -0.5 * sum((assign(b) * log_p(a)).sum()
                    for a, b in (sides, sides[::-1]))
  got = make("vlap")(outputs, batch, None, Layout())
  assert float(got) == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("name", ["cg_vlm", "vlap"])
def test_eight_devices_give_the_gradient_of_one(name):
  batch, outputs = case()
  objective = make(name)
  of = lambda layout: jax.jit(jax.grad(
      lambda x: objective(outputs | {"visual_tokens": x}, batch, None,
                          layout)))(outputs["visual_tokens"])
  want = np.asarray(of(Layout()))
  got = np.asarray(of(Layout(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))))
  assert want.any()
  assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)
