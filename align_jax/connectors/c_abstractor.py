"""C-Abstractor, a connector of Honeybee (arXiv 2312.06742, section 3.2).

  features + positions --3 RegNet blocks--> --average to M places-->
           --3 RegNet blocks--> --linear, SiLU, linear--> M tokens

Convolutions keep what lies near each other together. Spec:
honeybee/projectors/projectors.py, CAbstractor, whose blocks are timm's
(timm/models/regnet.py, Bottleneck: 1x1, depthwise 3x3, squeeze and excitation,
1x1, a residual) with SiLU and LayerNorm over channels.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.connectors.grid import pool, square_latents
from align_jax.connectors.protocol import Connector, ConnectorOutput, Context
from align_jax.ops.norms import layer_norm
from align_jax.ops.stack import LayerStack
from align_jax.parallel.layout import Layout


class RegBlock(nn.Module):
  """x f[I,S,S,C or E] -> (f[I,S,S,E], None).

  Parameters (f = E inside the block, s = a quarter of the input's channels):
    conv1_cf  conv2_ijf (3 x 3, each channel alone)  conv3_fe
    norm1_*_f norm2_*_f norm3_*_e (scale, bias)
    squeeze_fs squeeze_bias_s excite_sf excite_bias_f
    and where C is not E: short_ce, norm_short_*_e

  Attributes:
    width: E.
  """
  width: int
  dtype: Any = jnp.float32
  layout: Layout = Layout()

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
    """x f[I,S,S,C] -> (f[I,S,S,E], None)."""
    c, e = x.shape[-1], self.width
    squeezed = round(c / 4)

    def weight(name: str, *shape: int, fan: int) -> jax.Array:
      return self.param(name, nn.initializers.normal(fan ** -0.5),
                        shape).astype(self.dtype)

    def bias(name: str, size: int) -> jax.Array:
      return self.param(name, nn.initializers.zeros, (size,)).astype(
          self.dtype)

    def norm(name: str, letter: str, x: jax.Array) -> jax.Array:
      scale = self.param(f"{name}_scale_{letter}", nn.initializers.ones, (e,))
      shift = self.param(f"{name}_bias_{letter}", nn.initializers.zeros, (e,))
      return layer_norm(x, scale, shift, eps=1e-5)

    y = x @ weight("conv1_cf", c, e, fan=c)
    y = nn.silu(norm("norm1", "f", self.layout.constrain(y, "b..f")))
    y = _depthwise(y, weight("conv2_ijf", 3, 3, e, fan=9))
    y = nn.silu(norm("norm2", "f", y))
    z = y.mean((1, 2))
    z = nn.silu(z @ weight("squeeze_fs", e, squeezed, fan=e)
                + bias("squeeze_bias_s", squeezed))
    z = nn.sigmoid(z @ weight("excite_sf", squeezed, e, fan=max(squeezed, 1))
                   + bias("excite_bias_f", e))
    y = y * z[:, None, None]
    y = norm("norm3", "e", y @ weight("conv3_fe", e, e, fan=e))
    if c != e:
      x = norm("norm_short", "e", x @ weight("short_ce", c, e, fan=c))
    return self.layout.constrain(nn.silu(x + y), "b..."), None


def _depthwise(x: jax.Array, weight_ijf: jax.Array) -> jax.Array:
  """A 3 x 3 convolution of each channel alone, zeros around: f[I,S,S,F].

  Nine shifted products: they stay where their channels are, whatever the mesh.
  """
  side = x.shape[1]
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return sum(padded[:, i:i + side, j:j + side] * weight_ijf[i, j]
             for i in range(3) for j in range(3))


class RegStage(nn.Module):
  """`depth` blocks: f[I,S,S,C] -> f[I,S,S,E].

  Parameters: `first/...`, where C is not E, and `layers/...`, the rest.
  """
  depth: int
  width: int
  dtype: Any = jnp.float32
  layout: Layout = Layout()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """f[I,S,S,C] -> f[I,S,S,E]."""
    shared = dict(width=self.width, dtype=self.dtype, layout=self.layout)
    rest = self.depth
    if x.shape[-1] != self.width:
      x, _ = RegBlock(**shared, name="first")(x)
      rest -= 1
    if rest:
      block = RegBlock(**shared, parent=None)
      x, _ = LayerStack(block, rest, name="layers")(x)
    return x


class CAbstractor(Connector):
  """`latents` tokens an image, on a square grid.

  Parameters: `position_pc` f[P,C]; RegNet stages `before/...`, `after/...`;
  `in_ed`, `in_bias_d`, `out_dd`, `out_bias_d`. Published: tower features of
  the last layer, no class token, no token at the end.

  Attributes:
    latents: M, a square number; published 144 or 256.
    width: E.
    depth: blocks before and after the pooling.
  """
  keeps_grid = True
  latents: int = 144
  width: int = 1024
  depth: int = 3

  @classmethod
  def tokens_out(cls, patches: int, latents: int = 144,
                 **options: Any) -> int:
    """M; see `square_latents`."""
    del options
    return square_latents(patches, latents, "c_abstractor")

  @nn.compact
  def __call__(self, features: jax.Array, image_mask: jax.Array,
               context: Context) -> ConnectorOutput:
    """features f[B,N,P,C] -> tokens f[B,N,M,D]."""
    del image_mask, context
    b, n, p, c = features.shape
    small = math.isqrt(self.tokens_out(p, self.latents))
    side = math.isqrt(p)
    position_pc = self.param("position_pc",
                             nn.initializers.truncated_normal(0.02), (p, c))
    x = features.astype(self.dtype) + position_pc.astype(self.dtype)
    x = self.layout.constrain(x.reshape(b * n, side, side, c), "b...")

    shared = dict(depth=self.depth, width=self.width, dtype=self.dtype,
                  layout=self.layout)
    x = RegStage(**shared, name="before")(x)
    x = RegStage(**shared, name="after")(pool(x, side, small))

    d, init = self.dim_out, nn.initializers.lecun_normal()
    x = x.reshape(b, n, small * small, self.width)
    for name, shape in (("in_ed", (self.width, d)), ("out_dd", (d, d))):
      first = name == "in_ed"
      kernel = self.param(name, init, shape).astype(self.dtype)
      shift = self.param(f"{name[:-3]}_bias_d", nn.initializers.zeros, (d,))
      x = x @ kernel + shift.astype(self.dtype)
      x = nn.silu(x) if first else x
    return ConnectorOutput(self.layout.constrain(x, "b..."))
