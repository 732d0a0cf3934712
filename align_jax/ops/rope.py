"""Rotary position embedding (arXiv 2104.09864) and its published scalings.

Pairs are (i, i + R/2), as in Hugging Face's checkpoints, not (2i, 2i + 1); R is
the head's width, or less where only the first part of a head is turned.

A scaling is a small class with `stretch(freq, theta)`, which changes the
frequencies f64[R/2], and `gain`, which multiplies cosine and sine.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np


class Scaling(Protocol):
  """What a model that reads beyond its first length does to RoPE."""

  @property
  def gain(self) -> float: ...

  def stretch(self, freq: np.ndarray, theta: float) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class LinearScaling:
  """Positions divided by `factor` (arXiv 2306.15595)."""
  factor: float
  gain = 1.0

  def stretch(self, freq: np.ndarray, theta: float) -> np.ndarray:
    del theta
    return freq / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
  """How Llama 3.1 and later stretch their frequencies.

  With w the wavelength of a frequency and n the original length:

    w < n / high_freq_factor    kept
    w > n / low_freq_factor     divided by `factor`
    between                     blended, linearly in n / w

  Source: Llama 3.1's reference code.
  """
  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_positions: int
  gain = 1.0

  def stretch(self, freq: np.ndarray, theta: float) -> np.ndarray:
    del theta
    turns = self.original_max_positions * freq / (2 * np.pi)
    low, high = self.low_freq_factor, self.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return keep * freq + (1 - keep) * freq / self.factor


@dataclasses.dataclass(frozen=True)
class YarnScaling:
  """YaRN (arXiv 2309.00071, section 3.2 and 3.3).

  Frequencies that turn more than `beta_fast` times within the original length
  are kept, those that turn less than `beta_slow` times divided by `factor`,
  those between blended, linearly in their index.

  Attributes:
    gain: the square root of the paper's 1/t, on cosine and sine alike.
    truncate: the ends of the blend are whole indices.
  """
  factor: float
  original_max_positions: int
  gain: float
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True

  def stretch(self, freq: np.ndarray, theta: float) -> np.ndarray:
    width = 2 * len(freq)
    index = lambda turns: width * math.log(
        self.original_max_positions / (turns * 2 * math.pi)) / (
            2 * math.log(theta))
    first, last = index(self.beta_fast), index(self.beta_slow)
    if self.truncate:
      first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    if first == last:
      last += 0.001  # as the reference; no division by zero
    keep = 1 - np.clip((np.arange(len(freq)) - first) / (last - first), 0, 1)
    return keep * freq + (1 - keep) * freq / self.factor


@dataclasses.dataclass(frozen=True)
class LongRope:
  """LongRoPE (arXiv 2402.13753), as Phi-3 has it.

  Every frequency has a divisor of its own, and another set of them for samples
  longer than the original length. So the keys of a sample change when it
  grows beyond that length, and a cache of them must be filled anew.

  Attributes:
    short: divisors of the frequencies, R/2 of them.
    long: the same for samples of more than `original_max_positions`.
    gain: of cosine and sine, for either.
  """
  short: tuple[float, ...]
  long: tuple[float, ...]
  original_max_positions: int
  gain: float

  def stretch(self, freq: np.ndarray, theta: float) -> np.ndarray:
    """f64[2,R/2]: of short samples, of long ones."""
    del theta
    return freq / np.array([self.short, self.long])


def rope_frequencies(
    width: int, theta: float, scaling: Scaling | None = None
) -> np.ndarray:
  """f32[R/2], radians a position; of `LongRope` f32[2,R/2]."""
  freq = theta ** -(np.arange(0, width, 2, dtype=np.float64) / width)
  if scaling is not None:
    freq = scaling.stretch(freq, theta)
  return freq.astype(np.float32)


def sample_lengths(
    q_segments: jax.Array, kv_segments: jax.Array, kv_positions: jax.Array
) -> jax.Array:
  """i32[B,L]: how long the sample of each query is, among keys i32[B,S]."""
  same = q_segments[:, :, None] == kv_segments[:, None, :]
  return jnp.where(same, kv_positions[:, None, :], 0).max(-1) + 1


def rope_tables(
    positions: jax.Array,
    width: int,
    theta: float,
    scaling: Scaling | None = None,
    lengths: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """positions i32[B,L] -> cos f32[B,L,1,R], sin f32[B,L,1,R].

  The sine carries the sign of the rotation: minus in its first half.

  Args:
    positions: counted within each sample.
    width: R.
    theta: base of the frequencies.
    scaling: of the frequencies.
    lengths: i32[B,L] of each token's sample, for `LongRope` alone.
  """
  freq = rope_frequencies(width, theta, scaling)
  if isinstance(scaling, LongRope):
    long = lengths > scaling.original_max_positions
    freq = jnp.where(long[:, :, None, None], freq[1], freq[0])
  angles = positions[:, :, None, None].astype(jnp.float32) * freq
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  if scaling is not None and scaling.gain != 1.0:
    cos, sin = cos * scaling.gain, sin * scaling.gain
  return (jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1))


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """x f[B,L,H,K], turned by its positions, in x's dtype; computed in f32.

  Tables of a width R below K leave the rest of each head as it is.
  """
  width = cos.shape[-1]
  if width < x.shape[-1]:
    return jnp.concatenate(
        [rotate(x[..., :width], cos, sin), x[..., width:]], -1)
  half = width // 2
  swapped = jnp.concatenate([x[..., half:], x[..., :half]], -1)
  return (x * cos + swapped * sin).astype(x.dtype)
