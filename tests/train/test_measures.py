"""What a stage logs of its visual tokens, against loops."""

import math

import jax
import numpy as np
import pytest

from align_jax.config import MeshConfig
from align_jax.evals import alignment
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.train.measures import measures

B, N, T, L, V, D = 8, 3, 12, 9, 20, 6


def case():
  """Rows of two samples; one without an image, one without a label."""
  rng = np.random.default_rng(0)
  segments = np.repeat([[1] * 5 + [2] * 4], B, 0).astype(np.int32)
  weights = (rng.random((B, L)) < 0.5).astype(np.float32)
  weights[1, 5:] = 0
  slots = np.array([[1, 1, 2]] * B, np.int32)
  slots[2] = [1, 0, 0]
  batch = {"segment_ids": segments, "loss_weights": weights,
           "image_segment_ids": slots,
           "targets": rng.integers(0, V, (B, L)).astype(np.int32)}
  outputs = {
      "visual_tokens": rng.normal(size=(B, N, T, D)).astype(np.float32) * 3,
      "embed_vd": rng.normal(size=(V, D)).astype(np.float32)}
  return outputs, batch


def test_they_are_those_of_evals_image_by_image():
  outputs, batch = case()
  tacs, gaps, sizes, used = [], [], [], set()
  for b in range(B):
    for n in range(N):
      sample = batch["image_segment_ids"][b, n]
      said = [l for l in range(L) if batch["segment_ids"][b, l] == sample
              and batch["loss_weights"][b, l]]
      if not sample or not said:
        continue
      words = 2.0 * outputs["embed_vd"][batch["targets"][b, said]]
      tokens = outputs["visual_tokens"][b, n]
      tacs.append(alignment.tacs(tokens, words))
      gaps.append(np.mean([min(math.dist(x, w) for w in words)
                           for x in tokens]))
      sizes.append(np.linalg.norm(tokens, axis=-1).mean())
      used |= {(b, l) for l in said}
  assert 15 < len(tacs) < B * N
  word = np.mean([np.linalg.norm(2 * outputs["embed_vd"][
      batch["targets"][at]]) for at in used])
  got = jax.jit(lambda o, b: measures(o, b, Layout(), 2.0))(outputs, batch)
  assert got["tacs"] == pytest.approx(np.mean(tacs), rel=1e-5)
  assert got["gap"] == pytest.approx(np.mean(gaps), rel=1e-5)
  assert got["norm_ratio"] == pytest.approx(np.mean(sizes) / word, rel=1e-5)
  layout = Layout(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
  many = jax.jit(lambda o, b: measures(o, b, layout, 2.0))(outputs, batch)
  for name, value in got.items():
    assert many[name] == pytest.approx(float(value), rel=1e-5)


def test_a_batch_without_images_measures_nothing():
  outputs, batch = case()
  batch["image_segment_ids"][:] = 0
  got = measures(outputs, batch, Layout())
  assert {k: float(v) for k, v in got.items()} == {
      "tacs": 0, "gap": 0, "norm_ratio": 0}
