"""How near visual tokens are to words, in the training log of a stage.

What a step has at hand anyway: the visual tokens, and the words that each
sample is supervised on. `evals/alignment.py` measures more, on whole sets.
"""

from typing import Any

import jax
import jax.numpy as jnp

from align_jax.objectives.sea import unit
from align_jax.ops.embed_lookup import embed_lookup
from align_jax.parallel.layout import Layout

TOP = 10  # K of TACS


def measures(outputs: dict[str, Any], batch: dict[str, Any], layout: Layout,
             embed_scale: float = 1.0) -> dict[str, jax.Array]:
  """Means over the images of samples that have supervised words.

  Args:
    outputs: of the model: `visual_tokens` f[B,N,T,D], `embed_vd` f[V,D].
    batch: as in data/batch.py.
    layout: of both.
    embed_scale: what the LLM multiplies words' embeddings with.

  Returns:
    f32[] each, without gradients, 0 where there is no such image:
      tacs        mean of an image's 10 largest cosines to a word of its sample
                  (SEA, 2408.11813, eq 14); of all tokens, if T is less
      gap         mean distance to the nearest of these words (after eq 5,
                  which has a whole vocabulary)
      norm_ratio  mean norm of visual tokens over mean norm of these words
  """
  stop = jax.lax.stop_gradient
  visual = stop(outputs["visual_tokens"]).astype(jnp.float32)
  table = stop(outputs["embed_vd"])
  words = embed_scale * embed_lookup(
      table, batch["targets"], dtype=table.dtype, layout=layout).astype(
          jnp.float32)
  said = batch["loss_weights"] > 0
  slots = batch["image_segment_ids"]
  near = ((slots[:, :, None] == batch["segment_ids"][:, None])
          & said[:, None] & (slots > 0)[:, :, None])  # b[B,N,L]
  shown = near.any(-1)  # b[B,N]
  mask = near[:, :, None]

  cosine = jnp.einsum("bntd,bld->bntl", unit(visual), unit(words))
  best = jnp.where(mask, cosine, -1.0).max(-1)
  top = jax.lax.top_k(best, min(TOP, best.shape[-1]))[0].mean(-1)
  square = lambda a: jnp.square(a).sum(-1)
  distance = (square(visual)[..., None] + square(words)[:, None, None]
              - 2 * jnp.einsum("bntd,bld->bntl", visual, words))
  nearest = jnp.sqrt(jnp.maximum(
      jnp.where(mask, distance, jnp.inf).min(-1), 0.0))

  mean = lambda x, keep: jnp.where(keep, x, 0.0).sum() / jnp.maximum(
      keep.sum(), 1)
  used = near.any(1)
  ratio = mean(jnp.sqrt(square(visual)).mean(-1), shown) / jnp.maximum(
      mean(jnp.sqrt(square(words)), used), 1e-12)
  return {"tacs": mean(top, shown), "gap": mean(nearest.mean(-1), shown),
          "norm_ratio": ratio}
