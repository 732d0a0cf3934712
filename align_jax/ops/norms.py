"""LayerNorm and RMSNorm over the last axis, statistics in f32."""

import jax
import jax.numpy as jnp


def layer_norm(x: jax.Array, scale: jax.Array | None,
               bias: jax.Array | None, eps: float) -> jax.Array:
  """(x - mean) / sqrt(var + eps) * scale + bias, in x's dtype.

  Args:
    x: f[..., C].
    scale: f[C], or None for a norm without affine.
    bias: f[C] or None.
    eps: added to the (biased) variance.
  """
  y = x.astype(jnp.float32)
  y = y - y.mean(-1, keepdims=True)
  y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
  if scale is not None:
    y = y * scale.astype(jnp.float32)
  if bias is not None:
    y = y + bias.astype(jnp.float32)
  return y.astype(x.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float,
             offset: float = 0.0) -> jax.Array:
  """x / sqrt(mean(x^2) + eps) * (offset + scale), in x's dtype.

  Args:
    x: f[..., C].
    scale: f[C].
    eps: added to the mean square.
    offset: 1 where the weights are kept around zero, as Gemma's.
  """
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
  return (y * (offset + scale.astype(jnp.float32))).astype(x.dtype)
