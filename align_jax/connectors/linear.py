"""One linear map, as the first LLaVA (arXiv 2304.08485, section 4.1)."""

import flax.linen as nn
import jax

from align_jax.connectors.protocol import Connector, ConnectorOutput, Context


class Linear(Connector):
  """tokens = features @ W + b, a visual token a patch.

  Parameters: `kernel_cd` f[C,D], `bias_d` f[D].
  """

  keeps_grid = True

  @nn.compact
  def __call__(self, features: jax.Array, image_mask: jax.Array,
               context: Context) -> ConnectorOutput:
    """features f[B,N,P,C] -> tokens f[B,N,P,D]."""
    del image_mask, context
    width = features.shape[-1]
    kernel = self.param("kernel_cd", nn.initializers.lecun_normal(),
                        (width, self.dim_out))
    bias = self.param("bias_d", nn.initializers.zeros, (self.dim_out,))
    tokens = (features.astype(self.dtype) @ kernel.astype(self.dtype)
              + bias.astype(self.dtype))
    return ConnectorOutput(self.layout.constrain(tokens, "b..."))
