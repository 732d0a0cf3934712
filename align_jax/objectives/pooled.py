"""An image and its caption, each as one vector, for objectives over pairs.

A row holds several samples, so a sample is a (row, segment); its image side is
the mean of its visual tokens, its text side the mean embedding of the tokens
it is supervised on.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from align_jax.ops.embed_lookup import embed_lookup
from align_jax.parallel.layout import Layout


class Samples(NamedTuple):
  """Up to S samples a row.

  Attributes:
    image: f32[B,S,D], mean of a sample's visual tokens.
    text: f32[B,S,D], mean embedding of its labelled words; constants.
    keep: b[B,S], samples that have both.
  """
  image: jax.Array
  text: jax.Array
  keep: jax.Array


def present(batch: dict[str, Any]) -> jax.Array:
  """b[B,S]: samples with an image and a labelled word; S = N image slots."""
  count = batch["image_segment_ids"].shape[1]
  ids = jnp.arange(1, count + 1)
  has_image = (batch["image_segment_ids"][:, None] == ids[:, None]).any(-1)
  labelled = (batch["segment_ids"][:, None] == ids[:, None]) & (
      batch["loss_weights"][:, None] > 0)
  return has_image & labelled.any(-1)


def pool(outputs: dict[str, Any], batch: dict[str, Any],
         layout: Layout) -> Samples:
  """Both sides of every sample of a batch."""
  slots = batch["image_segment_ids"]
  ids = jnp.arange(1, slots.shape[1] + 1)
  mean = lambda weights, x: jnp.einsum(
      "bsl,bld->bsd", weights, x) / jnp.maximum(
          weights.sum(-1, keepdims=True), 1)
  own = (slots[:, None] == ids[:, None]).astype(jnp.float32)
  image = mean(own, outputs["visual_tokens"].astype(jnp.float32).mean(2))
  words = (batch["segment_ids"][:, None] == ids[:, None]) & (
      batch["loss_weights"][:, None] > 0)
  table = jax.lax.stop_gradient(outputs["embed_vd"])
  embedded = embed_lookup(table, batch["targets"], dtype=table.dtype,
                          layout=layout).astype(jnp.float32)
  text = mean(words.astype(jnp.float32), embedded)
  return Samples(image, jax.lax.stop_gradient(text), present(batch))
