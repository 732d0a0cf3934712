"""The transformer block that image and text towers share.

Pre-norm, with biases everywhere, as in CLIP (Radford et al. 2021, 2103.00020,
after ViT 2010.11929) and SigLIP (2303.15343); what differs between towers is
the activation and whether attention is causal.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.ops.attention import attention
from align_jax.ops.norms import layer_norm
from align_jax.parallel.layout import Layout

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    # OpenAI's CLIP was trained with this approximation and needs it.
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)).

  Parameters (c width, h heads, k head width, f hidden):
    norm1_scale_c norm1_bias_c  q_chk q_bias_hk  k_chk k_bias_hk
    v_chk v_bias_hk  o_hkc o_bias_c
    norm2_scale_c norm2_bias_c  up_cf up_bias_f  down_fc down_bias_c

  Attributes:
    width: C; `heads` divides it.
    depth: of the stack that this block is in, for the initial scale of what
      is added to the residual stream.
    activation: a key of `ACTIVATIONS`.
    axes: of the input, for the layout: "ipc" images, "blc" text.
    causal: whether a token sees only those before it; needs positions.
  """
  width: int
  heads: int
  mlp_width: int
  depth: int
  activation: str
  norm_eps: float
  axes: str
  causal: bool = False
  dtype: Any = jnp.float32
  layout: Layout = Layout()

  @nn.compact
  def __call__(
      self, x: jax.Array, positions: jax.Array | None = None,
      segment_ids: jax.Array | None = None,
  ) -> tuple[jax.Array, None]:
    """x f[B,L,C], positions and segment_ids i32[B,L] -> (f[B,L,C], None)."""
    c, h, f = self.width, self.heads, self.mlp_width
    k = c // h
    into, out = c ** -0.5, (2 * c * self.depth) ** -0.5

    def weight(name: str, shape: tuple[int, ...], std: float) -> jax.Array:
      return self.param(name, nn.initializers.normal(std), shape,
                        jnp.float32).astype(self.dtype)

    def bias(name: str, *shape: int) -> jax.Array:
      return self.param(name, nn.initializers.zeros, shape,
                        jnp.float32).astype(self.dtype)

    def norm(name: str, x: jax.Array) -> jax.Array:
      scale = self.param(f"{name}_scale_c", nn.initializers.ones, (c,),
                         jnp.float32)
      shift = self.param(f"{name}_bias_c", nn.initializers.zeros, (c,),
                         jnp.float32)
      return layer_norm(x, scale, shift, self.norm_eps)

    x = self.layout.constrain(x, self.axes)
    y = norm("norm1", x)
    q, key, v = (
        jnp.einsum("blc,chk->blhk", y, weight(f"{n}_chk", (c, h, k), into))
        + bias(f"{n}_bias_hk", h, k) for n in "qkv")
    y = attention(q, key, v, q_segments=segment_ids, kv_segments=segment_ids,
                  q_positions=positions, kv_positions=positions,
                  causal=self.causal, packed=True, layout=self.layout,
                  rows=self.axes[0])
    y = jnp.einsum("blhk,hkc->blc", y, weight("o_hkc", (h, k, c), out))
    x = self.layout.constrain(x + y + bias("o_bias_c", c), self.axes)

    y = norm("norm2", x)
    y = jnp.einsum("blc,cf->blf", y, weight("up_cf", (c, f), (2 * c) ** -0.5))
    y = ACTIVATIONS[self.activation](y + bias("up_bias_f", f))
    y = jnp.einsum("blf,fc->blc", y, weight("down_fc", (f, c), out))
    x = x + y + bias("down_bias_c", c)
    return self.layout.constrain(x, self.axes), None
