"""VPG-C of Cheetah (arXiv 2308.04152): the LLM asks for a second look.

  1. queries read each image as in BLIP-2: tokens, at their places in the text
  2. after `layer` layers of the LLM, the state h of the prompt's last token
     makes new queries: own queries + W_q h
  3. these read the images again, through the same frozen Q-Former
  4. W_p of what they found is added to the images' places; the LLM goes on

W_q and W_p start at zero. Trained are W_q, W_p and the new queries: 6,320,896
parameters at the published sizes. Where SAM's images inform each other inside
the Q-Former, here the LLM has read all of them. Spec: the authors'
cheetah_vicuna.py and modeling_llama.py (update_layer = 16).
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.connectors.protocol import ConnectorOutput, Context
from align_jax.connectors.qformer import QFormer, flat, image_keys


class VPGC(QFormer):
  """BLIP-2's Q-Former, and a second look that the LLM asks for.

  Parameters: the Q-Former's without text, and those of the second look:
  `again_queries_te` f[T,E], which start as the first look's, `again_ask_de`
  f[D,E], `again_ask_bias_e` (W_q), `again_tell_ed` f[E,D], `again_tell_bias_d`
  (W_p).

  Generation reads a prompt in one piece, since its end decides what the
  images' places hold. Of an InstructBLIP's Q-Former the part that reads text is
  left.

  Attributes:
    layer: layers of the LLM before the second look.
  """
  extends: ClassVar[str] = "qformer"
  added: ClassVar[Mapping[str, str]] = {
      "again_queries_te": "queries_te", "again_*": ""}
  leaves: ClassVar[tuple[str, ...]] = (
      "words_ve", "positions_le", "stack/layers/text_*")

  free = (*QFormer.free, "text", "words", "positions")

  text: bool = False
  layer: int = 16

  @property
  def feedback_layer(self) -> int:
    """After how many of its layers the LLM asks again."""
    return self.layer

  @nn.compact
  def __call__(self, features: jax.Array, image_mask: jax.Array,
               context: Context,
               asked: jax.Array | None = None) -> ConnectorOutput:
    """features f[B,N,P,C] -> tokens f[B,N,T,D].

    Args:
      features: of the tower.
      image_mask: b[B,N].
      context: see protocol.py.
      asked: f[B,N,D], the LLM's state for each image: then tokens are what is
        to be added at the images' places.
    """
    del image_mask
    b, n = features.shape[:2]
    layers = self.runner(features.shape[-1])
    x = self.param("queries_te", nn.initializers.normal(0.02),
                   (self.queries, self.width))
    if asked is not None:
      x = self.param("again_queries_te", lambda *_: x, x.shape)
      x = x + self._affine("again_ask_de", asked, self.width)[:, :, None]
    x = jnp.broadcast_to(x.astype(self.dtype), (b, n, *x.shape[-2:]))
    mask = jnp.ones((b * n, self.queries), bool)
    x = layers(flat(self.normed(x, context)), flat(features.astype(
        self.dtype)), mask, keys=image_keys(context, n, asked is not None))
    x = x.reshape(b, n, *x.shape[1:])
    if asked is not None:
      x = self._affine("again_tell_ed", x, self.dim_out)
      return ConnectorOutput(self.layout.constrain(x, "b..."))
    return ConnectorOutput(self.end(x), again={
        "features": features, "image_segment_ids": context.image_segment_ids})

  def _affine(self, name: str, x: jax.Array, out: int) -> jax.Array:
    """A map with a bias that starts at zero: f[...,I] -> f[...,out]."""
    zeros, stem, letters = nn.initializers.zeros, name[:-3], name[-2:]
    kernel = self.param(name, zeros, (x.shape[-1], out)).astype(self.dtype)
    bias = self.param(f"{stem}_bias_{letters[1]}", zeros, (out,))
    return x.astype(self.dtype) @ kernel + bias.astype(self.dtype)
