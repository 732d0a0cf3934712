"""Neighbouring patches joined into one token: InternVL's and Idefics3's.

  features --join f x f neighbours--> f[P/f^2, f^2*C] --projection--> tokens

InternVL (arXiv 2404.16821, section 3; transformers' modeling_internvl.py)
projects by LayerNorm, linear, GELU, linear; Idefics3 and SmolVLM (arXiv
2408.12637, section 3; modeling_idefics3.py) by one linear map without bias.
"""

from typing import Any

import flax.linen as nn
import jax

from align_jax.connectors.grid import fold, side_of
from align_jax.connectors.protocol import (
  Connector,
  ConnectorOutput,
  Context,
  check_form,
)
from align_jax.ops.norms import layer_norm

FORMS = ("internvl", "idefics3")


class PixelShuffle(Connector):
  """A token for each square of `factor` x `factor` patches.

  Parameters, K = factor^2 * C:
    internvl  `norm_scale_c` `norm_bias_c` f[K], `in_cf` f[K,D], `in_bias_f`,
              `out_fd` f[D,D], `out_bias_d`
    idefics3  `kernel_cd` f[K,D]

  Attributes:
    form: "internvl" or "idefics3".
    factor: InternVL 2; Idefics3 2, SmolVLM 3 or 4.
  """
  keeps_grid = True
  form: str = "internvl"
  factor: int = 2

  @classmethod
  def tokens_out(cls, patches: int, form: str = "internvl", factor: int = 2,
                 **options: Any) -> int:
    """P / factor^2.

    Raises:
      InputError: no such form, or a grid that `factor` does not divide.
    """
    del options
    check_form("pixel_shuffle", form, FORMS)
    side_of(patches, "pixel_shuffle", factor)
    return patches // factor ** 2

  @nn.compact
  def __call__(self, features: jax.Array, image_mask: jax.Array,
               context: Context) -> ConnectorOutput:
    """features f[B,N,P,C] -> tokens f[B,N,P/factor^2,D]."""
    del image_mask, context
    self.tokens_out(features.shape[-2], self.form, self.factor)
    x = fold(features.astype(self.dtype), self.factor)
    width, init = x.shape[-1], nn.initializers.lecun_normal()
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    if self.form == "idefics3":
      kernel_cd = self.param("kernel_cd", init, (width, self.dim_out))
      x = x @ kernel_cd.astype(self.dtype)
      return ConnectorOutput(self.layout.constrain(x, "b..."))

    def bias(name: str) -> jax.Array:
      return self.param(name, zeros, (self.dim_out,)).astype(self.dtype)

    x = layer_norm(x, self.param("norm_scale_c", ones, (width,)),
                   self.param("norm_bias_c", zeros, (width,)), eps=1e-5)
    in_cf = self.param("in_cf", init, (width, self.dim_out))
    x = x @ in_cf.astype(self.dtype) + bias("in_bias_f")
    x = nn.gelu(self.layout.constrain(x, "b..f"), approximate=False)
    out_fd = self.param("out_fd", init, (self.dim_out, self.dim_out))
    x = x @ out_fd.astype(self.dtype) + bias("out_bias_d")
    return ConnectorOutput(self.layout.constrain(x, "b..."))
