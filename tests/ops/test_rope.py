"""Rotary embedding against its definition with complex numbers."""

import jax.numpy as jnp
import numpy as np

from align_jax.ops.rope import (
    Llama3Scaling,
    rope_frequencies,
    rope_tables,
    rotate,
)


def test_rotation_is_multiplication_by_a_phase() -> None:
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 5, 3, 8)).astype(np.float32)
  positions = rng.integers(0, 100, (2, 5))
  got = rotate(jnp.asarray(x), *rope_tables(jnp.asarray(positions), 8, 50.0))
  freq = 50.0 ** (-np.arange(4) / 4)
  phase = np.exp(1j * positions[:, :, None, None] * freq)
  want = (x[..., :4] + 1j * x[..., 4:]) * phase
  np.testing.assert_allclose(
      got, np.concatenate([want.real, want.imag], -1), atol=1e-5)


def test_llama3_scaling_by_cases() -> None:
  scaling = Llama3Scaling(8.0, 1.0, 4.0, 64)
  plain = rope_frequencies(32, 1000.0)
  got = rope_frequencies(32, 1000.0, scaling)
  for before, after in zip(plain, got):
    wavelength = 2 * np.pi / before
    if wavelength < 64 / 4:
      want = before
    elif wavelength > 64 / 1:
      want = before / 8
    else:
      smooth = (64 / wavelength - 1) / (4 - 1)
      want = (1 - smooth) * before / 8 + smooth * before
    np.testing.assert_allclose(after, want, rtol=1e-6)
  assert (got == plain).any() and (got < plain / 7).any()
  assert ((got < plain * 0.99) & (got > plain / 7)).any()
