"""LLaVA-1.5's connector: two linear maps around a GELU (arXiv 2310.03744).

And two controls for comparisons with ALIGN, without which a win means little:
`mlp_wide` spends ALIGN's parameters, `mlp_ln` has its LayerNorms.
"""

import functools
from typing import Any

import flax.linen as nn
import jax

from align_jax.connectors.protocol import Connector, ConnectorOutput, Context
from align_jax.data.tiling import Frame
from align_jax.ops.norms import layer_norm
from align_jax.registry import nearest

ACTIVATIONS = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "none": lambda x: x,
}


class MLP(Connector):
  """tokens = gelu(features @ W1 + b1) @ W2 + b2, a visual token a patch.

  Parameters: `in_cf` f[C,F], `in_bias_f`, `out_fd` f[F,D], `out_bias_d`, with
  F = D as published. `newline_xd` f[1,D] with `newline`.

  Attributes:
    activation: "gelu" (the exact one, as published), "gelu_tanh" or "none".
    newline: a learnt token, special token 0, that ends each row of patches
      where an image is cut into tiles (LLaVA-NeXT).
  """
  keeps_grid = True
  activation: str = "gelu"
  newline: bool = False

  @classmethod
  def frame(cls, newline: bool = False, **options: Any) -> Frame:
    """The newline, if there is one."""
    del options
    return Frame(newline=(0,)) if newline else Frame()

  def hidden(self, width: int) -> int:
    """F, for features of this width."""
    del width
    return self.dim_out

  def norm(self, name: str, x: jax.Array) -> jax.Array:
    """What is done before the GELU ("in") and at the end ("out")."""
    del name
    return x

  @nn.compact
  def __call__(self, features: jax.Array, image_mask: jax.Array,
               context: Context) -> ConnectorOutput:
    """features f[B,N,P,C] -> tokens f[B,N,P,D].

    Raises:
      ValueError: an unknown activation.
    """
    del image_mask, context
    if self.activation not in ACTIVATIONS:
      raise ValueError(f"activation {self.activation!r} is none of "
                       f"{', '.join(ACTIVATIONS)}"
                       f"{nearest(self.activation, ACTIVATIONS)}")
    width = features.shape[-1]
    hidden = self.hidden(width)
    init, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
    in_cf = self.param("in_cf", init, (width, hidden)).astype(self.dtype)
    in_f = self.param("in_bias_f", zeros, (hidden,)).astype(self.dtype)
    out_fd = self.param("out_fd", init, (hidden, self.dim_out)).astype(
        self.dtype)
    out_d = self.param("out_bias_d", zeros, (self.dim_out,)).astype(self.dtype)
    aux = {}
    if self.newline:
      aux["special_xd"] = self.param(
          "newline_xd", nn.initializers.normal(self.dim_out ** -0.5),
          (1, self.dim_out)).astype(self.dtype)
    x = features.astype(self.dtype) @ in_cf + in_f
    x = self.norm("in", self.layout.constrain(x, "b..f"))
    x = self.norm("out", ACTIVATIONS[self.activation](x) @ out_fd + out_d)
    return ConnectorOutput(self.layout.constrain(x, "b..."), aux)


class WideMLP(MLP):
  """The MLP, as wide as ALIGN is large.

  F is where F (C + 1 + D) + D comes nearest to ALIGN's C D + V D + 2 D + 2 V
  parameters.
  """

  def hidden(self, width: int) -> int:
    """F, for features of this width."""
    d, v = self.dim_out, self.vocab_size
    align = width * d + v * d + 2 * d + 2 * v
    return max(round((align - d) / (width + 1 + d)), 1)


class NormedMLP(MLP):
  """The MLP with ALIGN's LayerNorms: after each of the two linear maps.

  Parameters: the MLP's, and `in_norm_scale_f`, `in_norm_bias_f`,
  `out_norm_scale_d`, `out_norm_bias_d`; eps 1e-5.

  Attributes:
    gain: initial gain of the last norm. A token starts with the length
      gain * sqrt(D), whatever the features.
  """
  gain: float = 1.0

  def norm(self, name: str, x: jax.Array) -> jax.Array:
    """What is done before the GELU ("in") and at the end ("out")."""
    letter, start = ("f", 1.0) if name == "in" else ("d", self.gain)
    size = (x.shape[-1],)
    scale = self.param(f"{name}_norm_scale_{letter}",
                       nn.initializers.constant(start), size)
    bias = self.param(f"{name}_norm_bias_{letter}", nn.initializers.zeros,
                      size)
    return layer_norm(x, scale, bias, eps=1e-5)
