"""Attention on GPUs: a Pallas kernel for packed rows, cuDNN for whole ones.

cuDNN's attention through JAX's public signature takes no segment ids, and
tokamax's takes them only as a mask of queries x keys; the Triton kernel that
JAX ships as Pallas code takes the ids themselves.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import attention as kernel


def triton(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_segments: jax.Array | None = None,
    kv_segments: jax.Array | None = None,
    q_positions: jax.Array | None = None,
    kv_positions: jax.Array | None = None,
    causal: bool,
    window: None,
    soft_cap: None,
    interpret: bool,
) -> jax.Array:
  """As `plain`, by places in the row; no window, no soft cap.

  Raises:
    ValueError: other keys than queries.
  """
  del q_positions, kv_positions, window, soft_cap
  length = q.shape[1]
  if k.shape[1] != length:
    raise ValueError(f"the triton form is for as many keys as queries, not "
                     f"{k.shape[1]} and {length}")
  spare = -length % 128
  if spare and q_segments is None:
    q_segments = jnp.ones(q.shape[:2], jnp.int32)
  pad = lambda x: jnp.pad(
      x, [(0, 0), (0, spare)] + [(0, 0)] * (x.ndim - 2))
  repeat = q.shape[2] // k.shape[2]
  k, v = (jnp.repeat(x, repeat, axis=2) for x in (k, v))
  segments = None if q_segments is None else pad(q_segments)
  out = kernel.mha(pad(q), pad(k), pad(v), segments, sm_scale=1.0,
                   causal=causal, interpret=interpret)[:, :length]
  if q_segments is not None:
    out = out * (q_segments != 0)[:, :, None, None].astype(out.dtype)
  return out


def cudnn(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_segments: None = None,
    kv_segments: None = None,
    q_positions: jax.Array | None = None,
    kv_positions: jax.Array | None = None,
    causal: bool,
    window: None,
    soft_cap: None,
    interpret: bool,
) -> jax.Array:
  """As `plain`, of rows that are one sample each.

  Raises:
    ValueError: rows with segment ids.
  """
  del q_positions, kv_positions, window, soft_cap
  if q_segments is not None or kv_segments is not None:
    raise ValueError("the cudnn form takes no segment ids")
  return jax.nn.dot_product_attention(
      q, k, v, scale=1.0, is_causal=causal,
      implementation="xla" if interpret else "cudnn")
