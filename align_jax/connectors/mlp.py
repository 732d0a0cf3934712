"""LLaVA-1.5's connector: two linear maps around a GELU (arXiv 2310.03744)."""

import flax.linen as nn
import jax

from align_jax.connectors.protocol import Connector, ConnectorOutput, Context


class MLP(Connector):
  """tokens = gelu(features @ W1 + b1) @ W2 + b2, a visual token a patch.

  Parameters: `in_cf` f[C,F], `in_bias_f`, `out_fd` f[F,D], `out_bias_d`, with
  F = D as published. The GELU is the exact one (erf).
  """

  @nn.compact
  def __call__(self, features: jax.Array, image_mask: jax.Array,
               context: Context) -> ConnectorOutput:
    """features f[B,N,P,C] -> tokens f[B,N,P,D]."""
    del image_mask, context
    width, hidden = features.shape[-1], self.dim_out
    init, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
    in_cf = self.param("in_cf", init, (width, hidden)).astype(self.dtype)
    in_f = self.param("in_bias_f", zeros, (hidden,)).astype(self.dtype)
    out_fd = self.param("out_fd", init, (hidden, self.dim_out)).astype(
        self.dtype)
    out_d = self.param("out_bias_d", zeros, (self.dim_out,)).astype(self.dtype)
    x = features.astype(self.dtype) @ in_cf + in_f
    x = nn.gelu(self.layout.constrain(x, "b..f"), approximate=False)
    return ConnectorOutput(
        self.layout.constrain(x @ out_fd + out_d, "b..."))
