"""How near visual tokens are to words, in the training log of a stage.

What a step has at hand anyway: the visual tokens, the words that each sample
is supervised on, and the decoder. `evals/alignment.py` measures the same, and
more, on whole sets.
"""

from typing import Any

import jax
import jax.numpy as jnp

from align_jax.objectives.sea import unit
from align_jax.ops.embed_lookup import embed_lookup
from align_jax.parallel.layout import ROWS, Layout

TOP = 10  # K of TACS
NEAREST = 10  # k of mutual k-NN
READ, TOKENS = 1024, 256  # of MIR: positions of a row, tokens of a kind


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
      mutual_knn  how many of an image's 10 nearest among the batch's, by mean
                  visual token, are so too by the mean of these words
                  (2405.07987); 0 for a batch of 10 images or less
      cka         linear CKA of the same two means (1905.00414)
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
  own = jnp.einsum("bnl,bld->bnd", near.astype(jnp.float32), words)
  flat = lambda a: a.reshape(-1, a.shape[-1])
  sides = (flat(visual.mean(2)),
           flat(own / jnp.maximum(near.sum(-1), 1)[..., None]),
           shown.reshape(-1))
  return {"tacs": mean(top, shown), "gap": mean(nearest.mean(-1), shown),
          "norm_ratio": ratio, "mutual_knn": mutual_knn(*sides),
          "cka": cka(*sides)}


def mutual_knn(a: jax.Array, b: jax.Array, keep: jax.Array) -> jax.Array:
  """`alignment.mutual_knn` of the things f32[I,D] that `keep` b[I] marks."""
  if len(a) <= NEAREST:
    return jnp.zeros([])
  there = keep[:, None] & keep & ~jnp.eye(len(a), dtype=bool)

  def nearest(x: jax.Array) -> jax.Array:
    x = unit(x)
    return jax.lax.top_k(jnp.where(there, x @ x.T, -jnp.inf), NEAREST)[1]

  same = (nearest(a)[:, :, None] == nearest(b)[:, None]).any(-1).mean(-1)
  count = keep.sum()
  return jnp.where(count > NEAREST, jnp.where(keep, same, 0.0).sum()
                   / jnp.maximum(count, 1), 0.0)


def cka(a: jax.Array, b: jax.Array, keep: jax.Array) -> jax.Array:
  """`alignment.cka` of the things f32[I,D] that `keep` b[I] marks."""
  a, b = (_centred(x, keep)[0] for x in (a, b))
  a, b = a @ a.T, b @ b.T  # [I,I], however wide they are
  size = jnp.sqrt((a * a).sum()) * jnp.sqrt((b * b).sum())
  return (a * b).sum() / jnp.maximum(size, 1e-30)


def first_rows(x: jax.Array, layout: Layout) -> jax.Array:
  """A row of each of the layout's shards: [B,...] -> [shards,...].

  All of them where the shards do not divide the rows.
  """
  shards = layout.shards(ROWS)
  if x.shape[0] % shards:
    return x
  return x.reshape(shards, -1, *x.shape[1:])[:, 0]


def mir(states: jax.Array, visual: jax.Array, text: jax.Array) -> jax.Array:
  """Modality integration rate (2410.07167), as `alignment.mir` has it.

  Args:
    states: f[layers+1,B,L,D], what each layer of the decoder is given and
      what the last one gives; the first is the embeddings and does not count.
    visual: b[B,L], where visual tokens are.
    text: b[B,L], where text is.

  Returns:
    f32[], of 256 tokens of either kind, evenly chosen, or of all if there
    are fewer; 0 where there are less than two of a kind.
  """
  def some(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    mask = mask.reshape(-1)
    n, total = min(TOKENS, mask.size), mask.sum()
    at = jnp.arange(n)
    wanted = jnp.where(total > n, at * total // n, at)
    place = jnp.searchsorted(jnp.cumsum(mask), wanted + 1)
    return jnp.minimum(place, mask.size - 1), at < total

  flat = states[1:].reshape(states.shape[0] - 1, -1, states.shape[-1])
  (a, seen), (b, read) = ((flat[:, place].astype(jnp.float32), keep)
                          for place, keep in map(some, (visual, text)))
  mean_norm = (jnp.linalg.norm(b, axis=-1) * read).sum(-1) / jnp.maximum(
      read.sum(), 1)
  scale = 1 / jnp.maximum(mean_norm, 1e-12)[:, None, None]
  far = jax.vmap(lambda a, b: _frechet(_tamed(a, seen), seen,
                                       _tamed(b, read), read))
  total = far(scale * a, scale * b).sum()
  enough = jnp.minimum(seen.sum(), read.sum()) > 1
  return jnp.where(enough, jnp.log10(jnp.where(enough, total, 1.0)), 0.0)


def _tamed(x: jax.Array, keep: jax.Array) -> jax.Array:
  """Tokens of outlying norm replaced by the median of each coordinate."""
  norms, count = jnp.linalg.norm(x, axis=-1), keep.sum()

  def middle(a: jax.Array) -> jax.Array:
    shape = (-1,) + (1,) * (a.ndim - 1)
    ordered = jnp.sort(jnp.where(keep.reshape(shape), a, jnp.inf), axis=0)
    return jnp.where(count > 0, ordered[jnp.maximum(count - 1, 0) // 2], 0.0)

  off = jnp.where(keep, norms, 0.0).sum() / jnp.maximum(count, 1)
  spread = jnp.sqrt(jnp.where(keep, jnp.square(norms - off), 0.0).sum()
                    / jnp.maximum(count - 1, 1))
  far = jnp.abs(norms - middle(norms)) > 3 * spread
  return jnp.where(far[:, None], middle(x), x)


def _frechet(a: jax.Array, keep_a: jax.Array, b: jax.Array,
             keep_b: jax.Array) -> jax.Array:
  """Fréchet distance of two Gaussians fitted to f32[n,D] each.

  With covariances A'A and B'B the trace of the root of their product is the
  sum of the singular values of AB', [n,n], however wide the tokens are.
  """
  (a, mean_a), (b, mean_b) = _centred(a, keep_a), _centred(b, keep_b)
  a, b = (x / jnp.sqrt(jnp.maximum(keep.sum() - 1, 1))
          for x, keep in ((a, keep_a), (b, keep_b)))
  product = jnp.matmul(a, b.T, precision="highest")
  shared = jnp.linalg.svd(product, compute_uv=False).sum()
  return (jnp.square(mean_a - mean_b).sum() + jnp.square(a).sum()
          + jnp.square(b).sum() - 2 * shared)


def _centred(x: jax.Array, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
  """f32[n,D] less its mean, 0 where not `keep`; and the mean."""
  weight = keep[:, None].astype(x.dtype)
  mean = (weight * x).sum(0) / jnp.maximum(weight.sum(), 1)
  return weight * (x - mean), mean
