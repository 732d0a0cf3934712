"""D-Abstractor, a connector of Honeybee (arXiv 2312.06742, section 3.2).

Learned queries, each at a place of the image, look around there: six decoder
layers of Deformable DETR (arXiv 2010.04159, equation 2).

  places    the patches averaged to a grid of M: where queries stand
  layer     attend among queries; look at a few points near one's own place,
            moved by learned offsets; feed forward. Each with a residual and
            then LayerNorm.

Spec: honeybee/projectors/dabs.py, DAbstractor with one feature level and the
pooled features as query positions; layers as transformers'
modeling_deformable_detr.py. Looking at a point mixes the four patches around
it; here as a product with a matrix of hat functions, which needs no gather:
a point's share of patch i is max(0, 1 - |x - i|) along each axis.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from align_jax.connectors.grid import pool, square_latents
from align_jax.connectors.protocol import Connector, ConnectorOutput, Context
from align_jax.ops.attention import attention
from align_jax.ops.norms import layer_norm
from align_jax.ops.stack import LayerStack
from align_jax.parallel.layout import Layout


def _directions(heads: int, points: int) -> np.ndarray:
  """f32[H,O,2]: head h starts looking along its own angle, o + 1 patches far.
  """
  angle = np.arange(heads) * 2 * np.pi / heads
  unit = np.stack([np.cos(angle), np.sin(angle)], -1)
  unit = unit / np.abs(unit).max(-1, keepdims=True)
  return (unit[:, None] * np.arange(1, points + 1)[:, None]).astype(np.float32)


class DeformableLayer(nn.Module):
  """x f[I,M,E], places f[I,M,E], patches f[I,P,E], points f[M,2] -> x.

  Parameters (h heads, k head width, o points, x the axes across and down):
    q_ehk k_ehk v_ehk (and *_bias_hk)  o_hke o_bias_e
    value_ehk value_bias_hk  offset_ehox offset_bias_hox
    share_eho share_bias_ho  look_hke look_bias_e
    up_ef up_bias_f down_fe down_bias_e
    norm1_*_e norm2_*_e norm3_*_e (scale, bias)
  """
  heads: int
  points: int
  mlp_width: int
  dtype: Any = jnp.float32
  layout: Layout = Layout()

  @nn.compact
  def __call__(self, x: jax.Array, places: jax.Array, patches: jax.Array,
               points_mx: jax.Array) -> tuple[jax.Array, None]:
    """x f[I,M,E] -> (f[I,M,E], None)."""
    e, h, o, f = x.shape[-1], self.heads, self.points, self.mlp_width
    k, side = e // h, math.isqrt(patches.shape[1])
    normal, zeros = nn.initializers.normal, nn.initializers.zeros

    def affine(name: str, letters: str, x: jax.Array, *shape: int,
               init: Any = None, start: Any = zeros) -> jax.Array:
      """x f[I,M,E] @ f[E,...] + f[...]."""
      kernel = self.param(f"{name}_e{letters}",
                          init or normal(e ** -0.5), (e, *shape))
      bias = self.param(f"{name}_bias_{letters}", start, shape)
      kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
      return jnp.tensordot(x, kernel, 1) + bias

    def join(name: str, x: jax.Array) -> jax.Array:
      """Heads back together: f[I,M,H,K] -> f[I,M,E]."""
      kernel = self.param(f"{name}_hke", normal(e ** -0.5), (h, k, e))
      bias = self.param(f"{name}_bias_e", zeros, (e,))
      return (jnp.einsum("imhk,hke->ime", x, kernel.astype(self.dtype))
              + bias.astype(self.dtype))

    def norm(name: str, x: jax.Array) -> jax.Array:
      scale = self.param(f"{name}_scale_e", nn.initializers.ones, (e,))
      shift = self.param(f"{name}_bias_e", zeros, (e,))
      return self.layout.constrain(layer_norm(x, scale, shift, 1e-5), "b..")

    q, key = (affine(n, "hk", x + places, h, k) for n in "qk")
    y = attention(q, key, affine("v", "hk", x, h, k))
    x = norm("norm1", x + join("o", y))

    asking = x + places
    value = affine("value", "hk", patches, h, k)
    value = value.reshape(-1, side, side, h, k)
    moves = affine("offset", "hox", asking, h, o, 2, init=zeros,
                   start=lambda *_: jnp.asarray(_directions(h, o)))
    shares = jax.nn.softmax(
        affine("share", "ho", asking, h, o, init=zeros).astype(jnp.float32))
    # In patches, the first one's centre at 0; f32, since places are fine.
    at = (points_mx[:, None, None].astype(jnp.float32) * side
          + moves.astype(jnp.float32) - 0.5)
    hats = jnp.maximum(
        1 - jnp.abs(at[..., None] - jnp.arange(side, dtype=jnp.float32)), 0)
    seen = jnp.einsum("imho,imhoy,imhox->imhyx", shares, hats[..., 1, :],
                      hats[..., 0, :])
    y = jnp.einsum("imhyx,iyxhk->imhk", seen.astype(self.dtype), value)
    x = norm("norm2", x + join("look", y))

    y = nn.relu(self.layout.constrain(affine("up", "f", x, f), "b.f"))
    down_fe = self.param("down_fe", normal(f ** -0.5), (f, e))
    down_e = self.param("down_bias_e", zeros, (e,))
    y = y @ down_fe.astype(self.dtype) + down_e.astype(self.dtype)
    return norm("norm3", x + y), None


class DAbstractor(Connector):
  """`latents` tokens an image.

  Parameters: `in_ce`, `in_bias_e` (where C is not E), `position_pe` f[P,E],
  `queries_me` f[M,E], `points_mx` f[M,2] (where each looks, as shares of width
  and height; learned), `layers/...`, `out_ed`, `out_bias_d`.

  Attributes:
    latents: M, a square number; published 144.
    width: E.
    depth: layers.
    heads: of both attentions.
    points: each head looks at.
    mlp_width: of the feed-forward part.
  """
  latents: int = 144
  width: int = 1024
  depth: int = 6
  heads: int = 8
  points: int = 4
  mlp_width: int = 1024

  @classmethod
  def tokens_out(cls, patches: int, latents: int = 144,
                 **options: Any) -> int:
    """M; see `square_latents`."""
    del options
    return square_latents(patches, latents, "d_abstractor")

  @nn.compact
  def __call__(self, features: jax.Array, image_mask: jax.Array,
               context: Context) -> ConnectorOutput:
    """features f[B,N,P,C] -> tokens f[B,N,M,D]."""
    del image_mask, context
    b, n, p, c = features.shape
    e, m, d = self.width, self.tokens_out(p, self.latents), self.dim_out
    side, small = math.isqrt(p), math.isqrt(m)
    init, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
    x = features.astype(self.dtype).reshape(b * n, p, c)
    if c != e:
      in_ce = self.param("in_ce", init, (c, e)).astype(self.dtype)
      x = x @ in_ce + self.param("in_bias_e", zeros, (e,)).astype(self.dtype)
    position_pe = self.param("position_pe",
                             nn.initializers.truncated_normal(0.02), (p, e))
    x = self.layout.constrain(x + position_pe.astype(self.dtype), "b..")
    places = pool(x.reshape(-1, side, side, e), side, small).reshape(-1, m, e)
    queries_me = self.param("queries_me", nn.initializers.normal(1.0), (m, e))
    points_mx = self.param("points_mx", lambda *_: jnp.asarray(
        _grid(side, small)), (m, 2))
    layers = LayerStack(
        DeformableLayer(heads=self.heads, points=self.points,
                        mlp_width=self.mlp_width, dtype=self.dtype,
                        layout=self.layout, parent=None),
        self.depth, name="layers")
    y = jnp.broadcast_to(queries_me.astype(self.dtype), places.shape)
    y, _ = layers(y, places, x, points_mx)
    out_ed = self.param("out_ed", init, (e, d)).astype(self.dtype)
    out_d = self.param("out_bias_d", zeros, (d,)).astype(self.dtype)
    tokens = (y @ out_ed + out_d).reshape(b, n, m, d)
    return ConnectorOutput(self.layout.constrain(tokens, "b..."))


def _grid(side: int, small: int) -> np.ndarray:
  """f32[small^2,2]: evenly spread centres of patches, (across, down)."""
  line = np.linspace(0.5, side - 0.5, small) / side
  down, across = np.meshgrid(line, line, indexing="ij")
  return np.stack([across, down], -1).reshape(-1, 2).astype(np.float32)
