"""Position embeddings on another grid, against torch and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from align_jax.towers.positions import cubic_weights, on_grid


@pytest.mark.parametrize("learnt, wanted", [
    (5, 3), (3, 5), (4, 8), (7, 2), (1, 3), (6, 1), (37, 16), (16, 27)])
@pytest.mark.parametrize("antialias", [False, True])
def test_equals_torch(learnt: int, wanted: int, antialias: bool) -> None:
  table = np.random.default_rng(0).normal(
      size=(1 + learnt**2, 3)).astype(np.float32)
  square = torch.from_numpy(table[1:].reshape(1, learnt, learnt, 3))
  want = torch.nn.functional.interpolate(
      square.permute(0, 3, 1, 2), size=(wanted, wanted), mode="bicubic",
      align_corners=False, antialias=antialias)
  want = want.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
  got = on_grid(jnp.asarray(table), 1, wanted, antialias)
  np.testing.assert_array_equal(got[0], table[0])
  np.testing.assert_allclose(got[1:], want, atol=1e-5)


def test_the_same_grid_is_the_same_table() -> None:
  table = jnp.arange(10.0).reshape(5, 2)
  assert on_grid(table, 1, 2, False) is table


@pytest.mark.parametrize("antialias", [False, True])
def test_a_constant_stays_constant(antialias: bool) -> None:
  for learnt, wanted in ((5, 3), (3, 7), (9, 1)):
    weights = cubic_weights(learnt, wanted, antialias)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-12)


def test_bfloat16_is_resampled_in_float32() -> None:
  """Rounded once, at the end."""
  table = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
  half = jnp.asarray(table, jnp.bfloat16)
  got = on_grid(half, 0, 3, False)
  want = on_grid(half.astype(jnp.float32), 0, 3, False)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))
