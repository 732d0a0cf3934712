"""Perceiver resamplers: a few learned latents read an image's patches.

  latents f[T,E] --6 x (attend to [patches ; latents], feed forward)--> tokens

OpenFlamingo (arXiv 2308.01390; open_flamingo/src/helpers.py,
PerceiverResampler): works at the tower's width, LayerNorms, biases only there.
Flamingo's LLM reads the latents by cross-attention; here one linear map (ours)
takes them to the LLM's width. Idefics2 (arXiv 2405.02246; transformers'
modeling_idefics2.py, Idefics2Connector): a gated MLP to the LLM's width comes
first; RMSNorms, grouped heads, no biases.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.connectors.protocol import (
  Connector,
  ConnectorOutput,
  Context,
  check_form,
)
from align_jax.ops.attention import attention
from align_jax.ops.norms import layer_norm, rms_norm
from align_jax.ops.stack import LayerStack
from align_jax.parallel.layout import Layout

# As published; a size of 0 in a config is one of these.
FORMS: dict[str, dict[str, int]] = {
    "openflamingo": dict(depth=6, heads=8, kv_heads=8, head_width=64),
    "idefics2": dict(depth=3, heads=16, kv_heads=4, head_width=96),
}


class FlamingoLayer(nn.Module):
  """One layer: latents f[I,T,E], patches f[I,P,E] -> (latents, None).

  Parameters (e width, h heads, k head width, f hidden = 4 E):
    media_norm_scale_e media_norm_bias_e latent_norm_scale_e
    latent_norm_bias_e  q_ehk  kv_ejhk (j: keys, values)  o_hke
    mlp_norm_scale_e mlp_norm_bias_e  up_ef down_fe
  """
  heads: int
  head_width: int
  dtype: Any = jnp.float32
  layout: Layout = Layout()

  @nn.compact
  def __call__(self, x: jax.Array,
               patches: jax.Array) -> tuple[jax.Array, None]:
    """x f[I,T,E] -> (f[I,T,E], None)."""
    e, h, k = x.shape[-1], self.heads, self.head_width

    def weight(name: str, *shape: int, std: float) -> jax.Array:
      return self.param(name, nn.initializers.normal(std), shape).astype(
          self.dtype)

    def norm(name: str, x: jax.Array) -> jax.Array:
      scale = self.param(f"{name}_norm_scale_e", nn.initializers.ones, (e,))
      bias = self.param(f"{name}_norm_bias_e", nn.initializers.zeros, (e,))
      return layer_norm(x, scale, bias, eps=1e-5)

    inner = norm("latent", x)
    read = jnp.concatenate([norm("media", patches), inner], axis=1)
    q = jnp.einsum("ite,ehk->ithk", inner, weight("q_ehk", e, h, k,
                                                  std=e ** -0.5))
    kv = jnp.einsum("ite,ejhk->jithk", read, weight("kv_ejhk", e, 2, h, k,
                                                    std=e ** -0.5))
    y = attention(self.layout.constrain(q, "b.h."),
                  *(self.layout.constrain(part, "b.h.") for part in kv))
    x = x + jnp.einsum("ithk,hke->ite", y, weight("o_hke", h, k, e,
                                                  std=(h * k) ** -0.5))
    y = norm("mlp", x) @ weight("up_ef", e, 4 * e, std=e ** -0.5)
    y = nn.gelu(self.layout.constrain(y, "b.f"), approximate=False)
    x = x + y @ weight("down_fe", 4 * e, e, std=(4 * e) ** -0.5)
    return self.layout.constrain(x, "b.."), None


class Idefics2Layer(nn.Module):
  """One layer: latents f[I,T,E], patches f[I,P,E] -> (latents, None).

  Parameters (g key-value heads, each read by H / G heads; f hidden = 4 E):
    media_norm_scale_e latent_norm_scale_e  q_ehk k_egk v_egk o_hke
    mlp_norm_scale_e  gate_ef up_ef down_fe
  """
  heads: int
  kv_heads: int
  head_width: int
  dtype: Any = jnp.float32
  layout: Layout = Layout()

  @nn.compact
  def __call__(self, x: jax.Array,
               patches: jax.Array) -> tuple[jax.Array, None]:
    """x f[I,T,E] -> (f[I,T,E], None)."""
    e, h, g, k = x.shape[-1], self.heads, self.kv_heads, self.head_width

    def weight(name: str, *shape: int, std: float) -> jax.Array:
      return self.param(name, nn.initializers.normal(std), shape).astype(
          self.dtype)

    def norm(name: str, x: jax.Array) -> jax.Array:
      return rms_norm(x, self.param(f"{name}_norm_scale_e",
                                    nn.initializers.ones, (e,)), eps=1e-6)

    inner = norm("latent", x)
    read = jnp.concatenate([norm("media", patches), inner], axis=1)
    q = jnp.einsum("ite,ehk->ithk", inner,
                   weight("q_ehk", e, h, k, std=e ** -0.5))
    keys, values = (
        jnp.einsum("ite,egk->itgk", read,
                   weight(f"{n}_egk", e, g, k, std=e ** -0.5)) for n in "kv")
    y = attention(self.layout.constrain(q, "b.h."), keys, values)
    x = x + jnp.einsum("ithk,hke->ite", y, weight("o_hke", h, k, e,
                                                  std=(h * k) ** -0.5))
    y = norm("mlp", x)
    gate = nn.silu(y @ weight("gate_ef", e, 4 * e, std=e ** -0.5))
    y = gate * (y @ weight("up_ef", e, 4 * e, std=e ** -0.5))
    y = self.layout.constrain(y, "b.f")
    x = x + y @ weight("down_fe", 4 * e, e, std=(4 * e) ** -0.5)
    return self.layout.constrain(x, "b.."), None


class Perceiver(Connector):
  """`latents` tokens an image, whatever the number of patches.

  Parameters:
    openflamingo  `latents_te`, `layers/...`, `norm_scale_e` `norm_bias_e`,
                  `out_ed` `out_bias_d`; E = C
    idefics2      `in_gate_cf` `in_up_cf` `in_down_fe`, `latents_te`,
                  `layers/...`, `norm_scale_e`; E = D

  Attributes:
    form: "openflamingo" or "idefics2".
    latents: T.
    depth: layers; 0 here and below is as published, 6 and 3.
    heads: 8 and 16.
    kv_heads: 8 (as many as heads) and 4.
    head_width: 64 and 96.
    in_width: of Idefics2's first MLP; 0 is 4 D. Published: the LLM's own
      hidden width.
  """
  form: str = "openflamingo"
  latents: int = 64
  depth: int = 0
  heads: int = 0
  kv_heads: int = 0
  head_width: int = 0
  in_width: int = 0

  @classmethod
  def tokens_out(cls, patches: int, form: str = "openflamingo",
                 latents: int = 64, **options: Any) -> int:
    """As many as there are latents.

    Raises:
      InputError: no such form.
    """
    del patches, options
    check_form("perceiver", form, tuple(FORMS))
    return latents

  @nn.compact
  def __call__(self, features: jax.Array, image_mask: jax.Array,
               context: Context) -> ConnectorOutput:
    """features f[B,N,P,C] -> tokens f[B,N,latents,D]."""
    del image_mask, context
    layers = self.layers()
    x, patches = self.begin(features)
    x, _ = layers(x, patches)
    return ConnectorOutput(self.end(x, *features.shape[:2]))

  def layers(self) -> LayerStack:
    """The layers, called as layers(latents, patches, first=, last=)."""
    check_form("perceiver", self.form, tuple(FORMS))
    size = lambda name: getattr(self, name) or FORMS[self.form][name]
    shared = dict(heads=size("heads"), head_width=size("head_width"),
                  dtype=self.dtype, layout=self.layout, parent=None)
    block = (FlamingoLayer(**shared) if self.form == "openflamingo" else
             Idefics2Layer(kv_heads=size("kv_heads"), **shared))
    return LayerStack(block, depth=size("depth"), name="layers")

  def begin(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """f[B,N,P,C] -> the first latents f[B*N,T,E], what is read f[B*N,P,E]."""
    images = features.shape[0] * features.shape[1]
    x = features.astype(self.dtype).reshape(images, *features.shape[2:])
    start, init = nn.initializers.normal(1.0), nn.initializers.lecun_normal()
    if self.form == "idefics2":
      width, hidden = x.shape[-1], self.in_width or 4 * self.dim_out
      start = nn.initializers.ones  # as published

      def weight(name: str, *shape: int) -> jax.Array:
        return self.param(name, init, shape).astype(self.dtype)

      gate = nn.silu(x @ weight("in_gate_cf", width, hidden))
      x = gate * (x @ weight("in_up_cf", width, hidden))
      x = self.layout.constrain(x, "b.f")
      x = x @ weight("in_down_fe", hidden, self.dim_out)
    x = self.layout.constrain(x, "b..")
    latents = self.param("latents_te", start, (self.latents, x.shape[-1]))
    latents = jnp.broadcast_to(latents.astype(self.dtype),
                               (images, *latents.shape))
    return self.layout.constrain(latents, "b.."), x

  def end(self, x: jax.Array, rows: int, slots: int) -> jax.Array:
    """The last latents f[B*N,T,E] -> tokens f[B,N,T,D]."""
    width = x.shape[-1]
    scale = self.param("norm_scale_e", nn.initializers.ones, (width,))
    if self.form == "idefics2":
      x = rms_norm(x, scale, eps=1e-6)
    else:
      bias = self.param("norm_bias_e", nn.initializers.zeros, (width,))
      x = layer_norm(x, scale, bias, eps=1e-5)
      out_ed = self.param("out_ed", nn.initializers.lecun_normal(),
                          (width, self.dim_out))
      out_d = self.param("out_bias_d", nn.initializers.zeros, (self.dim_out,))
      x = x @ out_ed.astype(self.dtype) + out_d.astype(self.dtype)
    x = x.reshape(rows, slots, self.latents, self.dim_out)
    return self.layout.constrain(x, "b...")
