"""ALIGN, the connector of AlignVLM (arXiv 2502.01341, section 3.1).

  features --W1--> LN --W2 (starts as the LM head)--> LN --softmax--> P
  tokens = P @ E, E the LLM's own embedding table

Each visual token is a weighted mean of word embeddings, so it lies in their
convex hull.
"""

import flax.linen as nn
import jax

from align_jax.connectors.protocol import Connector, ConnectorOutput, Context
from align_jax.ops.cost import Product
from align_jax.ops.norms import layer_norm
from align_jax.ops.vocab_mix import vocab_mix, vocab_probs


class Align(Connector):
  """Eq. 1 and 2: softmax(LN(W2 LN(W1 f))) @ E, a visual token a patch.

  Parameters: `w1_cd` f[C,D]; `norm1_scale_d`, `norm1_bias_d`; `w2_vd` f[V,D],
  a trainable copy of the LM head; `norm2_scale_v`, `norm2_bias_v`. No biases
  on W1 and W2 (the paper names none). Gradient flows into E where the decoder
  trains.

  Not stated in the paper, ours: eps 1e-5, affine norms, W1 lecun-normal, the
  start of the second norm's gain.

  Attributes:
    logit_gain: initial gain of the LayerNorm over the vocabulary. 1 is the
      paper as written, and starts almost uniform over the words.
  """
  logit_gain: float = 1.0

  @classmethod
  def copied_from_decoder(cls, **options: object) -> dict[str, str]:
    """W2 starts as the LM head (the tied embedding where there is none)."""
    del options
    return {"w2_vd": "head_vd"}

  @classmethod
  def products(cls, patches: int, width: int, dim_out: int, vocab_size: int,
               **options: object) -> list[Product]:
    """W1, W2 and the mean of embeddings: 2 P (C D + 2 V D) an image."""
    del options
    words = 2.0 * patches * vocab_size * dim_out
    return [Product(2.0 * patches * width * dim_out, "w1_cd"),
            Product(words, "w2_vd"), Product(words, "/decoder/embed_vd")]

  @nn.compact
  def __call__(self, features: jax.Array, image_mask: jax.Array,
               context: Context) -> ConnectorOutput:
    """features f[B,N,P,C] -> tokens f[B,N,P,D].

    aux["probs_tv"] f32[B,N,P,V] is Eq. 1, for inspection. Under jit it costs
    nothing to whoever does not use it.
    """
    del image_mask
    b, n, p, c = features.shape
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    w1_cd = self.param("w1_cd", nn.initializers.lecun_normal(),
                       (c, self.dim_out))
    scale_d = self.param("norm1_scale_d", ones, (self.dim_out,))
    bias_d = self.param("norm1_bias_d", zeros, (self.dim_out,))
    w2_vd = self.param("w2_vd", nn.initializers.normal(0.02),
                       (self.vocab_size, self.dim_out))
    scale_v = self.param("norm2_scale_v",
                         nn.initializers.constant(self.logit_gain),
                         (self.vocab_size,))
    bias_v = self.param("norm2_bias_v", zeros, (self.vocab_size,))

    h = features.astype(self.dtype) @ w1_cd.astype(self.dtype)
    h = layer_norm(h, scale_d, bias_d, eps=1e-5)
    h = self.layout.constrain(h.reshape(b, n * p, self.dim_out), "b..")
    words = (w2_vd.astype(self.dtype), scale_v, bias_v)
    tokens = vocab_mix(h, *words, context.embed_vd.astype(self.dtype),
                       layout=self.layout)
    probs = vocab_probs(h, *words, layout=self.layout)
    return ConnectorOutput(
        tokens.reshape(b, n, p, self.dim_out),
        {"probs_tv": probs.reshape(b, n, p, self.vocab_size)})
