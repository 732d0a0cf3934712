"""The transformer block that image and text towers share.

Pre-norm, as in CLIP (Radford et al. 2021, 2103.00020, after ViT 2010.11929),
SigLIP (2303.15343), EVA-CLIP (2211.07636), DINOv2 (2304.07193) and AIMv2
(2411.14402); what differs between towers are the activation, whether attention
is causal, the biases, the norm, the gate of the MLP and a learnt scale of each
branch.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.ops.attention import attention
from align_jax.ops.norms import layer_norm, rms_norm
from align_jax.ops.product import einsum
from align_jax.parallel.layout import Layout

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    # OpenAI's CLIP was trained with this approximation and needs it.
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}

# What a token looks at, see `Block.__call__`.
ATTENDS = ("all", "itself", "values")


class Block(nn.Module):
  """x + scale1 * attention(norm(x)), then x + scale2 * mlp(norm(x)).

  Parameters (c width, h heads, k head width, f hidden):
    norm1_scale_c norm1_bias_c  q_chk (q_bias_hk)  k_chk (k_bias_hk)
    v_chk (v_bias_hk)  o_hkc o_bias_c  (scale1_c)
    norm2_scale_c norm2_bias_c  up_cf up_bias_f  down_fc down_bias_c
    (scale2_c)
    and if gated, in the place of up and down:
    gate_cf gate_bias_f  value_cf value_bias_f  out_fc out_bias_c
  An RMSNorm has a scale alone.

  Attributes:
    width: C; `heads` divides it.
    depth: of the stack that this block is in, for the initial scale of what
      is added to the residual stream.
    activation: a key of `ACTIVATIONS`.
    axes: of the input, for the layout: "ipc" images, "blc" text.
    causal: whether a token sees only those before it; needs positions.
    qkv_bias: whether queries, keys and values have biases.
    gated: whether the MLP is out(activation(gate(x)) * value(x)), as SwiGLU.
    layer_scale: whether each branch is scaled by a learnt vector.
    biases: whether the maps out of attention and in the MLP have biases.
    rms: whether norms are RMSNorms.
  """
  width: int
  heads: int
  mlp_width: int
  depth: int
  activation: str
  norm_eps: float
  axes: str
  causal: bool = False
  qkv_bias: bool = True
  gated: bool = False
  layer_scale: bool = False
  biases: bool = True
  rms: bool = False
  dtype: Any = jnp.float32
  layout: Layout = Layout()

  @nn.compact
  def __call__(
      self, x: jax.Array, positions: jax.Array | None = None,
      segment_ids: jax.Array | None = None, attends: str = "all",
  ) -> tuple[jax.Array, jax.Array | None]:
    """One layer.

    Args:
      x: f[B,L,C].
      positions: i32[B,L], needed when causal.
      segment_ids: i32[B,L], 0 for padding; None where all is one sample.
      attends: "all", the layer as it was trained; "itself", every token sees
        itself alone, so that attention passes its value on (MaskCLIP,
        2112.01071); "values" is as "all", and gives beside the result what
        attention adds where keys and queries are both the values (CLIP
        Surgery, 2304.05653).

    Returns:
      (f[B,L,C], None or, for "values", f[B,L,C]).
    """
    c, h, f = self.width, self.heads, self.mlp_width
    k = c // h
    into, out = c ** -0.5, (2 * c * self.depth) ** -0.5

    def weight(name: str, shape: tuple[int, ...], std: float) -> jax.Array:
      return self.param(name, nn.initializers.normal(std), shape,
                        jnp.float32).astype(self.dtype)

    def bias(name: str, *shape: int) -> jax.Array | float:
      if not self.biases and not name.endswith("_hk"):
        return 0.0
      return self.param(name, nn.initializers.zeros, shape,
                        jnp.float32).astype(self.dtype)

    def norm(name: str, x: jax.Array) -> jax.Array:
      scale = self.param(f"{name}_scale_c", nn.initializers.ones, (c,),
                         jnp.float32)
      if self.rms:
        return rms_norm(x, scale, self.norm_eps)
      shift = self.param(f"{name}_bias_c", nn.initializers.zeros, (c,),
                         jnp.float32)
      return layer_norm(x, scale, shift, self.norm_eps)

    def scaled(name: str, y: jax.Array) -> jax.Array:
      if not self.layer_scale:
        return y
      return y * self.param(name, nn.initializers.ones, (c,),
                            jnp.float32).astype(self.dtype)

    def headed(name: str, y: jax.Array) -> jax.Array:
      z = einsum("blc,chk->blhk", y, weight(f"{name}_chk", (c, h, k), into),
                 self.layout)
      return z + bias(f"{name}_bias_hk", h, k) if self.qkv_bias else z

    x = self.layout.constrain(x, self.axes)
    y = norm("norm1", x)
    q, key, v = (headed(name, y) for name in "qkv")
    o_hkc, o_bias_c = weight("o_hkc", (h, k, c), out), bias("o_bias_c", c)

    def added(q: jax.Array, key: jax.Array) -> jax.Array:
      y = attention(q, key, v, q_segments=segment_ids,
                    kv_segments=segment_ids, q_positions=positions,
                    kv_positions=positions, causal=self.causal, packed=True,
                    layout=self.layout, rows=self.axes[0])
      return einsum("blhk,hkc->blc", y, o_hkc, self.layout) + o_bias_c

    if attends == "itself":
      y = einsum("blhk,hkc->blc", v, o_hkc, self.layout) + o_bias_c
    else:
      y = added(q, key)
    x = self.layout.constrain(x + scaled("scale1_c", y), self.axes)
    aside = scaled("scale1_c", added(v, v)) if attends == "values" else None

    y = norm("norm2", x)
    act = ACTIVATIONS[self.activation]

    def lifted(name: str) -> jax.Array:
      z = einsum("blc,cf->blf", y,
                 weight(f"{name}_cf", (c, f), (2 * c) ** -0.5), self.layout)
      return z + bias(f"{name}_bias_f", f)

    if self.gated:
      z, back = act(lifted("gate")) * lifted("value"), "out"
    else:
      z, back = act(lifted("up")), "down"
    y = einsum("blf,fc->blc", z, weight(f"{back}_fc", (f, c), out),
               self.layout)
    x = x + scaled("scale2_c", y + bias(f"{back}_bias_c", c))
    return self.layout.constrain(x, self.axes), aside
