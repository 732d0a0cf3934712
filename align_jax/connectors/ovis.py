"""Ovis: a visual vocabulary with an embedding table of its own.

  features --join s x s--> head, LN --softmax--> a share of each visual word
  tokens = shares @ table

(arXiv 2405.20797, equations 1 to 4; the LayerNorm on the logits is of Ovis 1.6;
transformers' modeling_ovis2.py.) The last rows of the table are no words: they
are the indicator tokens that frame an image, <start> tokens <grid> <end>, and
stand between its tiles.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.connectors.grid import fold, side_of
from align_jax.connectors.protocol import Connector, ConnectorOutput, Context
from align_jax.data.tiling import Frame
from align_jax.ops.norms import layer_norm

# Indicators by number: start, grid (ends the whole image), column and row
# (between tiles), end.
START, GRID, COLUMN, ROW, END = range(5)


class Ovis(Connector):
  """A token for each square of `stride` x `stride` patches.

  A grid that `stride` does not divide gets patches of zeros on the right and
  below.

  Parameters, W = words, X = indicators, K = stride^2 * C:
    `head_cv` f[K,W-X], `norm_scale_v`, `norm_bias_v`, `table_vd` f[W,D].

  Attributes:
    words: rows of the table, indicators among them.
    stride: patches joined along an edge.
    indicators: special tokens, 5 as published; 0 is none.
  """
  keeps_grid = True
  words: int = 65536
  stride: int = 2
  indicators: int = 5

  @classmethod
  def tokens_out(cls, patches: int, stride: int = 2, **options: Any) -> int:
    """ceil(sqrt(P) / stride)^2.

    Raises:
      InputError: patches that make no square.
    """
    del options
    return math.ceil(side_of(patches, "ovis") / stride) ** 2

  @classmethod
  def frame(cls, indicators: int = 5, **options: Any) -> Frame:
    """<start> image <grid> tile <column> tile <row> tile ... <end>."""
    del options
    if not indicators:
      return Frame()
    return Frame(before=(START,), whole=(GRID,), column=(COLUMN,), row=(ROW,),
                 after=(END,))

  @nn.compact
  def __call__(self, features: jax.Array, image_mask: jax.Array,
               context: Context) -> ConnectorOutput:
    """features f[B,N,P,C] -> tokens f[B,N,T,D].

    aux["special_xd"] f[X,D] are the indicators; aux["shares_tw"]
    f32[B,N,T,W-X] the shares of the visual words.
    """
    del image_mask, context
    if self.indicators not in (0, END + 1):
      raise ValueError(f"Ovis has {END + 1} indicators or none, not "
                       f"{self.indicators}")
    b, n, p, c = features.shape
    side = side_of(p, "ovis")
    x = features.astype(self.dtype)
    if spare := -side % self.stride:
      x = x.reshape(b, n, side, side, c)
      x = jnp.pad(x, ((0, 0), (0, 0), (0, spare), (0, spare), (0, 0)))
      x = x.reshape(b, n, (side + spare) ** 2, c)
    x = fold(x, self.stride)
    words = self.words - self.indicators
    head_cv = self.param("head_cv", nn.initializers.lecun_normal(),
                         (x.shape[-1], words))
    scale_v = self.param("norm_scale_v", nn.initializers.ones, (words,))
    bias_v = self.param("norm_bias_v", nn.initializers.zeros, (words,))
    # As torch's Embedding starts.
    table_vd = self.param("table_vd", nn.initializers.normal(1.0),
                          (self.words, self.dim_out)).astype(self.dtype)
    logits = jnp.matmul(x, head_cv.astype(self.dtype),
                        preferred_element_type=jnp.float32)
    logits = layer_norm(self.layout.constrain(logits, "b..v"), scale_v,
                        bias_v, eps=1e-5)
    shares = jax.nn.softmax(logits, axis=-1)
    tokens = shares.astype(self.dtype) @ table_vd[:words]
    aux = {"shares_tw": shares}
    if self.indicators:
      aux["special_xd"] = table_vd[words:]
    return ConnectorOutput(self.layout.constrain(tokens, "b..."), aux)
