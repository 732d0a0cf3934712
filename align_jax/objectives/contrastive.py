"""Contrastive loss of CLIP (2103.00020, figure 3) with joint positives.

CLIP takes the text of its own row as an image's one right answer. Where
several rows of a batch carry the same caption, that would call right answers
wrong; here all rows with the same caption are right, equally:

  q[i,j] = same[i,j] / sum_j same[i,j]
  loss_i = 1/2 (cross entropy of q[i] with softmax_j(s a_i . b_j)
              + cross entropy of q[i] with softmax_j(s b_i . a_j))

for image embeddings a, text embeddings b and s = exp(logit_scale), at most
100. With distinct captions q is the identity and this is CLIP's loss.
"""

import math

import jax
import jax.numpy as jnp

from align_jax.config import Config
from align_jax.parallel.layout import Layout

MAX_LOGIT_SCALE = math.log(100.0)
NO_MESH = Layout()
_MASKED = -1e30


def valid_rows(batch: dict[str, jax.Array]) -> jax.Array:
  """b[B]: rows with an image in slot 0 and a text."""
  return ((batch["image_segment_ids"][:, 0] != 0)
          & (batch["segment_ids"] != 0).any(-1))


class Contrastive:
  """Symmetric InfoNCE over the global batch.

  Needs `image_embeds` f[B,E], `text_embeds` f[B,E], `logit_scale` f[] of the
  outputs and `tokens`, `segment_ids`, `image_segment_ids` of the batch. Rows
  without an image or a text take no part, not even as negatives.
  """

  coupled = True
  model = "clip"

  def __init__(self, config: Config | None = None):
    del config  # has no options

  def weight(self, batch: dict[str, jax.Array],
             rng: jax.Array | None = None,
             layout: Layout | None = None) -> jax.Array:
    """f32[]: the rows that take part; it draws nothing."""
    del rng, layout
    return valid_rows(batch).sum().astype(jnp.float32)

  def __call__(self, outputs: dict[str, jax.Array],
               batch: dict[str, jax.Array], rng: jax.Array | None = None,
               layout: Layout = NO_MESH) -> jax.Array:
    """f32[]: the loss summed over the rows that take part."""
    del rng  # draws nothing
    valid = valid_rows(batch)
    captions = jnp.where(batch["segment_ids"] != 0, batch["tokens"], -1)
    same = (captions[:, None] == captions[None]).all(-1)
    same = layout.constrain(same & valid[:, None] & valid, "bj")
    # `same` is symmetric, and so it serves both directions.
    q = same / jnp.maximum(same.sum(-1, keepdims=True), 1)

    scale = jnp.exp(jnp.minimum(outputs["logit_scale"], MAX_LOGIT_SCALE))
    images = outputs["image_embeds"].astype(jnp.float32)
    texts = outputs["text_embeds"].astype(jnp.float32)

    def cross_entropy(own: jax.Array, other: jax.Array) -> jax.Array:
      """Rows stay where they are; the other side is gathered, [B,E]."""
      logits = scale * jnp.einsum("be,je->bj", own, other)
      logits = jnp.where(valid, layout.constrain(logits, "bj"), _MASKED)
      # q is 0 where logits are masked, and 0 * -1e30 is 0.
      return jax.nn.logsumexp(logits, axis=-1) - (q * logits).sum(-1)

    loss = cross_entropy(images, texts) + cross_entropy(texts, images)
    return 0.5 * jnp.where(valid, loss, 0.0).sum()
