"""SigLIP's pooling: a learnt query attends over the patches.

Multi-head attention pooling (Set Transformer 1810.00825, as big_vision's
MAPHead uses it for SigLIP, 2303.15343).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.ops.attention import attention
from align_jax.ops.norms import layer_norm
from align_jax.parallel.layout import Layout
from align_jax.towers.block import ACTIVATIONS


class MapHead(nn.Module):
  """Patches -> y = attention(probe, patches), then y + mlp(norm(y)).

  Parameters (c width, h heads, k head width, f hidden):
    probe_c  q_chk q_bias_hk  k_chk k_bias_hk  v_chk v_bias_hk
    o_hkc o_bias_c  norm_scale_c norm_bias_c
    up_cf up_bias_f  down_fc down_bias_c
  """
  width: int
  heads: int
  mlp_width: int
  activation: str
  norm_eps: float
  dtype: Any = jnp.float32
  layout: Layout = Layout()

  def setup(self) -> None:
    c, h, f = self.width, self.heads, self.mlp_width
    k, normal = c // h, nn.initializers.normal
    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    self.probe_c = self.param("probe_c", normal(c ** -0.5), (c,))
    for name in "qkv":
      setattr(self, f"{name}_chk", self.param(
          f"{name}_chk", normal(c ** -0.5), (c, h, k)))
      setattr(self, f"{name}_bias_hk", self.param(
          f"{name}_bias_hk", zeros, (h, k)))
    self.o_hkc = self.param("o_hkc", normal(c ** -0.5), (h, k, c))
    self.o_bias_c = self.param("o_bias_c", zeros, (c,))
    self.norm_scale_c = self.param("norm_scale_c", ones, (c,))
    self.norm_bias_c = self.param("norm_bias_c", zeros, (c,))
    self.up_cf = self.param("up_cf", normal((2 * c) ** -0.5), (c, f))
    self.up_bias_f = self.param("up_bias_f", zeros, (f,))
    self.down_fc = self.param("down_fc", normal(f ** -0.5), (f, c))
    self.down_bias_c = self.param("down_bias_c", zeros, (c,))

  def __call__(self, x: jax.Array) -> jax.Array:
    """f[I,P,C], after the tower's last norm -> f[I,C]."""
    probe = jnp.broadcast_to(self.probe_c.astype(self.dtype),
                             (x.shape[0], 1, self.width))
    y = attention(self._heads("q", probe), self._heads("k", x),
                  self._heads("v", x), layout=self.layout, rows="i")
    return self._rest(self.layout.constrain(y, "i..."))[:, 0]

  def each(self, x: jax.Array) -> jax.Array:
    """Every patch pooled as if there were no other: f[I,P,C] -> f[I,P,C].

    With one key, attention is that key's value whatever the query: so a
    patch gets to where pooled images and texts are compared.
    """
    return self._rest(self._heads("v", x))

  def _heads(self, name: str, x: jax.Array) -> jax.Array:
    y = jnp.einsum("blc,chk->blhk", x,
                   getattr(self, f"{name}_chk").astype(self.dtype))
    return y + getattr(self, f"{name}_bias_hk").astype(self.dtype)

  def _rest(self, y: jax.Array) -> jax.Array:
    """The output projection and the MLP: f[I,P,H,K] -> f[I,P,C]."""
    cast = lambda p: p.astype(self.dtype)
    y = jnp.einsum("blhk,hkc->blc", y, cast(self.o_hkc)) + cast(self.o_bias_c)
    z = layer_norm(y, self.norm_scale_c, self.norm_bias_c, self.norm_eps)
    z = jnp.einsum("blc,cf->blf", z, cast(self.up_cf)) + cast(self.up_bias_f)
    z = ACTIVATIONS[self.activation](z)
    return y + jnp.einsum("blf,fc->blc", z, cast(self.down_fc)) + cast(
        self.down_bias_c)
