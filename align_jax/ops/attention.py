"""Attention: one entry, a plain XLA form behind it.

A query attends to a key iff both belong to the same sample of their row and,
when causal, the key does not come after the query:

  row:          a a a b b .          segment ids  1 1 1 2 2 0
                                     positions    0 1 2 0 1 0
  may attend:   a x
                a x x                 . is padding: it attends to nothing,
                a x x x               nothing attends to it, and its output
                b       x             is zero
                b       x x
                .

A window of w hides keys w or more positions before the query.
"""

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


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_segments: jax.Array | None = None,
    kv_segments: jax.Array | None = None,
    q_positions: jax.Array | None = None,
    kv_positions: jax.Array | None = None,
    causal: bool = False,
    scale: float | None = None,
    window: int | jax.Array | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
  """Softmax attention with grouped key-value heads, softmax in f32.

  Args:
    q: f[B,L,H,K].
    k: f[B,S,G,K]; G divides H, and query head h reads key head h // (H/G).
    v: f[B,S,G,K].
    q_segments: i32[B,L], 0 for padding. Without segments (both None) a row is
      one sample.
    kv_segments: i32[B,S].
    q_positions: i32[B,L], needed when causal.
    kv_positions: i32[B,S].
    causal: keys after the query are hidden.
    scale: of the logits; None is K ** -0.5.
    window: of a causal query, how many keys it sees, itself among them; 0 or
      None is no window. A traced i32 scalar lets layers of one scan differ.
    soft_cap: logits z become soft_cap * tanh(z / soft_cap), after the scale
      and before the mask (Gemma 2, arXiv 2408.00118); None leaves them.

  Returns:
    f[B,L,H,K] in q's dtype; zero where a query may attend to nothing.

  Raises:
    ValueError: heads that do not divide, positions missing, or a window where
      attention is not causal.
  """
  b, l, h, width = q.shape
  g = k.shape[2]
  if h % g:
    raise ValueError(f"{h} query heads do not divide into {g} key-value heads")
  if causal and (q_positions is None or kv_positions is None):
    raise ValueError("causal attention needs q_positions and kv_positions")
  if not causal and window is not None:
    raise ValueError("a window needs causal attention")
  if (q_segments is None) != (kv_segments is None):
    raise ValueError("give both q_segments and kv_segments, or neither")
  scale = width ** -0.5 if scale is None else scale

  # Key-value heads first, the queries of a group in one matrix: every product
  # below is then a plain batched matrix product, forward and backward. Tokens
  # are the slower part of that axis, so that it can be cut over a mesh.
  m = h // g
  q = (q * scale).reshape(b, l, g, m, width).swapaxes(1, 2)
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
