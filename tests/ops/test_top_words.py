"""The streamed search finds what the plain one does, on any devices."""

import jax
import numpy as np
import pytest

from align_jax.config import MeshConfig
from align_jax.ops.top_words import placed, plain_top_words, top_words
from align_jax.parallel.mesh import make_mesh


def case(words: int):
  rng = np.random.default_rng(0)
  unit = lambda x: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(
      np.float32)
  return unit(rng.normal(size=(2, 5, 6))), unit(rng.normal(size=(words, 6)))


@pytest.mark.parametrize("words, chunk, sign", [
    (40, 8, 1), (41, 8, -1), (7, 64, 1)])
def test_chunks_change_nothing(words, chunk, sign):
  patches, table = case(words)
  ids, scores = top_words(patches, table, 4, sign, chunk=chunk)
  want, best = plain_top_words(patches, table, 4, sign)
  np.testing.assert_array_equal(ids, want)
  np.testing.assert_allclose(scores, best, rtol=1e-6)
  full = sign * np.einsum("ipe,we->ipw", patches, table)
  np.testing.assert_array_equal(ids, np.argsort(-full, -1)[..., :4])


@pytest.mark.parametrize("words", [64, 61, 9])
def test_devices_change_nothing(words):
  patches, table = case(words)
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  ids, scores = jax.jit(lambda p, t: top_words(
      p, t, 4, chunk=3, mesh=mesh))(patches, table)
  want, best = plain_top_words(patches, table, 4)
  np.testing.assert_array_equal(ids, want)
  np.testing.assert_allclose(scores, best, rtol=1e-6)
  # Laid out beforehand, so that no device ever holds them all.
  laid = placed(table, mesh)
  assert {s.data.shape[0] for s in laid.addressable_shards} == {
      -(-words // 8)}
  ids, scores = jax.jit(lambda p, t: top_words(
      p, t, 4, mesh=mesh, count=words))(patches, laid)
  np.testing.assert_array_equal(ids, want)
  np.testing.assert_allclose(scores, best, rtol=1e-6)


def test_of_equal_words_the_first():
  patches, table = case(6)
  table = np.concatenate([table, table])
  ids, _ = top_words(patches, table, 6, chunk=4)
  assert (np.asarray(ids).reshape(-1, 3, 2)[..., 1]
          == np.asarray(ids).reshape(-1, 3, 2)[..., 0] + 6).all()


def test_patches_times_words_are_never_held():
  shape = jax.ShapeDtypeStruct
  patches, words = 64, 2 ** 18
  found = jax.jit(lambda p, t: top_words(p, t, 10, chunk=1024)).lower(
      shape((1, patches, 8), np.float32), shape((words, 8), np.float32),
  ).compile().memory_analysis()
  assert found.temp_size_in_bytes < patches * words * 4 / 4
