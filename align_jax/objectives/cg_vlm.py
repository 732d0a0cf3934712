"""CG-VLM's contrast of whole images with whole captions.

Source: 2311.17945, whose abstract alone could be read: it maximises the
averaged similarity of pooled patch features and text-token embeddings. Here
that is InfoNCE between the mean visual token of a sample and the mean
embedding of its labelled words, over the global batch. The temperature is
CLIP's start, 0.07, fixed: the paper's is not known to us.
"""

from typing import Any

import jax
import jax.numpy as jnp

from align_jax.config import Config
from align_jax.objectives.pooled import pool, present
from align_jax.objectives.sea import unit
from align_jax.ops.info_nce import info_nce
from align_jax.parallel.layout import Layout


class CgVlm:
  """InfoNCE over samples; see the module.

  Options:
    temperature: that cosines are divided by.
  """

  coupled = True
  model = "vlm"

  def __init__(self, config: Config, temperature: float = 0.07):
    del config
    self.temperature = temperature

  def weight(self, batch: dict[str, Any], rng: jax.Array | None = None,
             layout: Layout | None = None) -> jax.Array:
    """The samples with an image and a labelled word, f32[]."""
    del rng, layout
    return present(batch).sum().astype(jnp.float32)

  def __call__(self, outputs: dict[str, Any], batch: dict[str, Any],
               rng: jax.Array, layout: Layout) -> jax.Array:
    """The loss summed over samples, f32[]."""
    del rng
    image, text, keep = pool(outputs, batch, layout)
    flat = lambda x: unit(x).reshape(-1, x.shape[-1])
    return info_nce(flat(image), flat(text), keep.reshape(-1),
                    jnp.float32(1 / self.temperature), layout=layout)
