"""Rotary position embedding (arXiv 2104.09864), with Llama 3's scaling.

Pairs are (i, i + K/2), as in Hugging Face's checkpoints, not (2i, 2i + 1).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
  """How Llama 3.1 and later stretch their frequencies.

  With w the wavelength of a frequency and n the original length:

    w < n / high_freq_factor    kept
    w > n / low_freq_factor     divided by `factor`
    between                     blended, linearly in n / w
  """
  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_positions: int


def rope_frequencies(
    head_width: int, theta: float, scaling: Llama3Scaling | None = None
) -> np.ndarray:
  """f32[K/2], radians a position. Source: Llama 3.1's reference code."""
  freq = theta ** -(np.arange(0, head_width, 2, dtype=np.float64) / head_width)
  if scaling is not None:
    turns = scaling.original_max_positions * freq / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    freq = keep * freq + (1 - keep) * freq / scaling.factor
  return freq.astype(np.float32)


def rope_tables(
    positions: jax.Array,
    head_width: int,
    theta: float,
    scaling: Llama3Scaling | None = None,
) -> tuple[jax.Array, jax.Array]:
  """positions i32[B,L] -> cos f32[B,L,1,K], sin f32[B,L,1,K].

  The sine carries the sign of the rotation: minus in its first half.
  """
  freq = rope_frequencies(head_width, theta, scaling)
  angles = positions[:, :, None, None].astype(jnp.float32) * freq
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  return (jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1))


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """x f[B,L,H,K], turned by its positions, in x's dtype; computed in f32."""
  half = x.shape[-1] // 2
  swapped = jnp.concatenate([x[..., half:], x[..., :half]], -1)
  return (x * cos + swapped * sin).astype(x.dtype)
