"""The plain form of attention: all scores at once. The reference."""

import jax
import jax.numpy as jnp

# Finite, so that a row with nothing to attend to has no NaN on its way.
_MASKED = -1e30


def attention_mask(
    q_segments: jax.Array | None,
    kv_segments: jax.Array | None,
    q_positions: jax.Array | None,
    kv_positions: jax.Array | None,
    causal: bool,
    window: int | jax.Array | None = None,
) -> jax.Array | None:
  """b[B,L,S], or None where everything may attend to everything."""
  mask = None
  if q_segments is not None:
    mask = ((q_segments[:, :, None] == kv_segments[:, None, :])
            & (q_segments[:, :, None] != 0))
  if causal:
    before = kv_positions[:, None, :] <= q_positions[:, :, None]
    mask = before if mask is None else mask & before
  if not isinstance(window, int | None) or window:
    near = (q_positions[:, :, None] - kv_positions[:, None, :]
            < jnp.where(window, window, jnp.iinfo(jnp.int32).max))
    mask = near if mask is None else mask & near
  return mask


def plain(
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
) -> jax.Array:
  """As `attention`, of queries that are scaled already."""
  b, l, h, width = q.shape
  g = k.shape[2]
  # Key-value heads first, the queries of a group in one matrix: every product
  # below is then a plain batched matrix product, forward and backward. Tokens
  # are the slower part of that axis, so that it can be cut over a mesh.
  m = h // g
  q = q.reshape(b, l, g, m, width).swapaxes(1, 2)
  q, k, v = q.reshape(b, g, l * m, width), k.swapaxes(1, 2), v.swapaxes(1, 2)
  scores = jnp.einsum("bgik,bgsk->bgis", q, k,
                      preferred_element_type=jnp.float32)
  if soft_cap is not None:
    scores = soft_cap * jnp.tanh(scores / soft_cap)
  mask = attention_mask(
      q_segments, kv_segments, q_positions, kv_positions, causal, window)
  if mask is not None:
    scores = jnp.where(jnp.repeat(mask, m, axis=1)[:, None], scores, _MASKED)
  probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  out = jnp.einsum("bgis,bgsk->bgik", probs, v).reshape(b, g, l, m, width)
  out = out.swapaxes(1, 2).reshape(b, l, h, width)
  if q_segments is not None:
    out = out * mask.any(-1)[:, :, None, None].astype(out.dtype)
  return out
