"""What a stage logs of its visual tokens, against loops."""

import math

import jax
import numpy as np
import pytest

from align_jax.config import MeshConfig
from align_jax.evals import alignment
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.train.measures import measures, mir

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
  tacs, gaps, sizes, used, means = [], [], [], set(), []
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
      means.append((tokens.mean(0), words.mean(0)))
  assert 15 < len(tacs) < B * N
  word = np.mean([np.linalg.norm(2 * outputs["embed_vd"][
      batch["targets"][at]]) for at in used])
  got = jax.jit(lambda o, b: measures(o, b, Layout(), 2.0))(outputs, batch)
  assert got["tacs"] == pytest.approx(np.mean(tacs), rel=1e-5)
  assert got["gap"] == pytest.approx(np.mean(gaps), rel=1e-5)
  assert got["norm_ratio"] == pytest.approx(np.mean(sizes) / word, rel=1e-5)
  seen, read = map(np.stack, zip(*means))
  assert got["mutual_knn"] == pytest.approx(
      alignment.mutual_knn(seen, read), abs=1e-6)
  assert got["cka"] == pytest.approx(alignment.cka(seen, read), rel=1e-4)
  layout = Layout(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
  many = jax.jit(lambda o, b: measures(o, b, layout, 2.0))(outputs, batch)
  for name, value in got.items():
    assert many[name] == pytest.approx(float(value), rel=1e-5)


def test_a_batch_without_images_measures_nothing():
  outputs, batch = case()
  batch["image_segment_ids"][:] = 0
  got = measures(outputs, batch, Layout())
  assert {k: float(v) for k, v in got.items()} == {
      "tacs": 0, "gap": 0, "norm_ratio": 0, "mutual_knn": 0, "cka": 0}


def layers(counts, wide):
  """States of an embedding and two layers, some tokens far off."""
  rng = np.random.default_rng(1)
  states = rng.normal(size=(3, 4, 40, wide)).astype(np.float32)
  kinds = np.zeros((4, 40), int)
  for row, (seen, read) in zip(kinds, counts):
    row[:seen], row[seen:seen + read] = 1, 2
  states[:, kinds == 1] += 0.7
  states[1, 0, 2], states[2, 1, 25] = 90, -60
  return states, kinds


@pytest.mark.parametrize("wide", (6, 150))
def test_mir_is_that_of_evals(wide):
  counts = [(12, 20), (5, 35), (0, 9), (20, 0)]
  states, kinds = layers(counts, wide)
  of = lambda kind: [layer[kinds == kind] for layer in states[1:]]
  want = alignment.mir(of(1), of(2))
  got = jax.jit(mir)(states, kinds == 1, kinds == 2)
  assert float(got) == pytest.approx(want, rel=1e-4)
  assert float(got) != pytest.approx(
      float(mir(states[:2], kinds == 1, kinds == 2)), rel=1e-2)


def test_mir_takes_some_of_many_tokens_and_nothing_of_too_few(monkeypatch):
  states, kinds = layers([(20, 20)] * 4, 5)
  monkeypatch.setattr("align_jax.train.measures.TOKENS", 16)
  which = [i * 80 // 16 for i in range(16)]
  of = lambda kind: [layer[kinds == kind][which] for layer in states[1:]]
  assert float(mir(states, kinds == 1, kinds == 2)) == pytest.approx(
      alignment.mir(of(1), of(2)), rel=1e-4)
  one = kinds == 1
  one &= one.cumsum().reshape(one.shape) == 1
  assert float(mir(states, one, kinds == 2)) == 0
