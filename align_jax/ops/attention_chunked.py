"""Attention in XLA, a chunk of queries at a time.

Scores of a chunk meet all keys and are computed again in the backward pass:
memory is chunk x keys, whatever the length. It goes by positions alone, so it
does for any rows, caches included.
"""

import jax
import jax.numpy as jnp

from align_jax.ops.attention_plain import plain

# Scores that exist at one time, over rows and heads of a device: 128 MiB.
SCORES = 2 ** 25


def chunk_of(rows: int, length: int, keys: int, heads: int) -> int:
  """Queries of a row at a time: a power of two, or all."""
  most = max(SCORES // (rows * keys * heads), 8)
  return min(1 << (most.bit_length() - 1), length)


def chunked(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_segments: jax.Array | None = None,
    kv_segments: jax.Array | None = None,
    q_positions: jax.Array | None = None,
    kv_positions: jax.Array | None = None,
    causal: bool,
    window: int | jax.Array | None,
    soft_cap: float | None,
    chunk: int | None = None,
) -> jax.Array:
  """As `plain`; `chunk` queries of a row at a time."""
  b, l, h, _ = q.shape
  size = chunk or chunk_of(b, l, k.shape[1], h)
  turns = -(-l // size)

  def cut(x: jax.Array | None) -> jax.Array | None:
    if x is None:
      return None
    room = [(0, 0), (0, turns * size - l)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, room).reshape(
        b, turns, size, *x.shape[2:]).swapaxes(0, 1)

  # The gradients of keys and values add up over chunks, in f32.
  wide_k, wide_v = k.astype(jnp.float32), v.astype(jnp.float32)

  def one(part: tuple) -> jax.Array:
    q, segments, positions = part
    return plain(
        q, wide_k.astype(k.dtype), wide_v.astype(v.dtype),
        q_segments=segments, kv_segments=kv_segments, q_positions=positions,
        kv_positions=kv_positions, causal=causal, window=window,
        soft_cap=soft_cap)

  out = jax.lax.map(jax.checkpoint(one, prevent_cse=False),
                    (cut(q), cut(q_segments), cut(q_positions)))
  return out.swapaxes(0, 1).reshape(b, turns * size, *q.shape[2:])[:, :l]
