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
  """Up to S samples a row, each at the place of its first image; S = N.

  Attributes:
    image: f32[B,S,D], mean of a sample's visual tokens.
    text: f32[B,S,D], mean embedding of its labelled words; constants.
    keep: b[B,S], samples that have both.
  """
  image: jax.Array
  text: jax.Array
  keep: jax.Array


def samples(slots: jax.Array) -> jax.Array:
  """i32[B,S]: the sample of which a slot i32[B,N] holds the first image, or 0.

  A row has more samples than slots where some have no image.
  """
  again = (slots[:, :, None] == slots[:, None]) & jnp.tri(
      slots.shape[1], k=-1, dtype=bool)
  return jnp.where(again.any(-1), 0, slots)


def labelled(batch: dict[str, Any], ids: jax.Array) -> jax.Array:
  """b[B,S,L]: the positions that a sample is supervised on."""
  return (ids > 0)[..., None] & (
      batch["segment_ids"][:, None] == ids[..., None]) & (
          batch["loss_weights"][:, None] > 0)


def present(batch: dict[str, Any]) -> jax.Array:
  """b[B,S]: samples with an image and a labelled word; S = N image slots."""
  return labelled(batch, samples(batch["image_segment_ids"])).any(-1)


def pool(outputs: dict[str, Any], batch: dict[str, Any],
         layout: Layout) -> Samples:
  """Both sides of every sample of a batch."""
  slots = batch["image_segment_ids"]
  ids = samples(slots)
  mean = lambda weights, x: jnp.einsum(
      "bsl,bld->bsd", weights, x) / jnp.maximum(
          weights.sum(-1, keepdims=True), 1)
  own = ((slots[:, None] == ids[..., None]) & (ids > 0)[..., None]).astype(
      jnp.float32)
  image = mean(own, outputs["visual_tokens"].astype(jnp.float32).mean(2))
  words = labelled(batch, ids)
  table = jax.lax.stop_gradient(outputs["embed_vd"])
  embedded = embed_lookup(table, batch["targets"], dtype=table.dtype,
                          layout=layout).astype(jnp.float32)
  text = mean(words.astype(jnp.float32), embedded)
  return Samples(image, jax.lax.stop_gradient(text), present(batch))
