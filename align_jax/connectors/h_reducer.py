"""H-Reducer, the connector of mPLUG-DocOwl 1.5 (arXiv 2403.12895, section 3).

Text runs along lines, so patches are joined along a row only:

  4 neighbours of a row --conv 1x4, GELU--> 4 x C --conv 1x4--> C --linear--> D

and one learned token ends the image. Spec: DocOwl1.5/mplug_docowl/model/
visual_encoder.py, MplugDocOwlHReducerModel. Its LayerNorm `ln_q` is made there
but never used, and is left out here. Both convolutions move by their own
width and meet the same neighbours, so each is a matrix product.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.connectors.grid import side_of
from align_jax.connectors.protocol import Connector, ConnectorOutput, Context


class HReducer(Connector):
  """A token for `columns` patches of a row, and one at the end.

  Parameters, J = columns:
    `before_jcf` f[J,C,J*C], `before_bias_f`, `reduce_jce` f[J,C,C],
    `reduce_bias_e`, `out_ed` f[C,D], `out_bias_d`, `end_d` f[D].

  Attributes:
    columns: patches joined; published 4.
  """
  columns: int = 4

  @classmethod
  def tokens_out(cls, patches: int, columns: int = 4, **options: Any) -> int:
    """P / columns + 1.

    Raises:
      InputError: a grid that `columns` does not divide.
    """
    del options
    side_of(patches, "h_reducer", columns)
    return patches // columns + 1

  @nn.compact
  def __call__(self, features: jax.Array, image_mask: jax.Array,
               context: Context) -> ConnectorOutput:
    """features f[B,N,P,C] -> tokens f[B,N,P/columns+1,D]."""
    del image_mask, context
    b, n, p, c = features.shape
    j, d = self.columns, self.dim_out
    count = self.tokens_out(p, j) - 1
    init, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros

    def weight(name: str, shape: tuple[int, ...]) -> jax.Array:
      return self.param(name, init, shape).astype(self.dtype)

    def bias(name: str, size: int) -> jax.Array:
      return self.param(name, zeros, (size,)).astype(self.dtype)

    # [J, C, out] counts as one matrix of J * C inputs.
    flat = lambda w: w.reshape(-1, w.shape[-1])
    x = features.astype(self.dtype).reshape(b, n, count, j * c)
    x = x @ flat(weight("before_jcf", (j, c, j * c)))
    x = self.layout.constrain(x + bias("before_bias_f", j * c), "b..f")
    x = nn.gelu(x, approximate=False)
    x = x @ flat(weight("reduce_jce", (j, c, c))) + bias("reduce_bias_e", c)
    x = x @ weight("out_ed", (c, d)) + bias("out_bias_d", d)
    end = self.param("end_d", nn.initializers.normal(1.0), (d,))
    end = jnp.broadcast_to(end.astype(self.dtype), (b, n, 1, d))
    tokens = jnp.concatenate([x, end], axis=2)
    return ConnectorOutput(self.layout.constrain(tokens, "b..."))
