"""SEA with soft labels: a patch's other words are no negatives of it.

SEA (2408.11813, section 3.2) draws one of a patch's n words; where another of
them is in the batch, as some other patch's word, it counts as a negative. Here
the pairs are SEA's, but the target of a patch is the distribution of its
scores (eq 9) over those of its words that the batch holds, and that of a word
the distribution of its scores over the batch's patches:

  L = 1/2 sum_i (lse_j s_ij - sum_j q_ij s_ij)
    + 1/2 sum_j (lse_i s_ij - sum_i c_ij s_ij)
  q_ij = S_ij / sum_j S_ij     c_ij = S_ij / sum_i S_ij

with S_ij the share that word j has in patch i's scores, 0 where it is not
among them. The form is ours. What it adds to SEA's sum is linear in the visual
tokens, so nothing of [pairs, pairs] is made for it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from align_jax.objectives import patch_labels
from align_jax.objectives.sea import Sea, tokens_at, unit
from align_jax.objectives.words import word_embeddings
from align_jax.parallel.layout import ROWS, Layout


class SeaSoft(Sea):
  """Options as SEA's."""

  name = "sea_soft"

  def __call__(self, outputs: dict[str, Any], batch: dict[str, Any],
               rng: jax.Array, layout: Layout) -> jax.Array:
    """The loss summed over the pairs, f32[]."""
    pairs = self.pairs(batch, rng, layout)
    b, r = pairs.word.shape
    words, scores = (
        jnp.take_along_axis(a.reshape(b, -1, a.shape[-1]),
                            pairs.patch[..., None], axis=1)
        for a in patch_labels.of_slots(
            batch["extras"], batch["image_segment_ids"]))
    groups = layout.shards(ROWS) if self.scope == "per_device" else 1
    of_patch, of_word = shares(pairs, words, scores, groups)

    embed = lambda ids: unit(word_embeddings(
        outputs["embed_vd"], self.table_qm, jnp.maximum(ids, 0), layout))
    x = unit(tokens_at(outputs, pairs.token))
    drawn = embed(pairs.word)
    listed = embed(words.reshape(b, -1)).reshape(b, r, words.shape[-1], -1)
    soft = 0.5 * jnp.einsum("brn,brnd->brd", of_patch + of_word, listed)
    moved = self.scale(outputs) * (x * (drawn - soft)).sum(-1)
    return self.contrast(outputs, x, drawn, pairs.keep, layout) + jnp.where(
        pairs.keep, moved, 0.0).sum()


def shares(pairs: patch_labels.Pairs, words: jax.Array, scores: jax.Array,
           groups: int = 1) -> tuple[jax.Array, jax.Array]:
  """What of a patch's target each of its words is, and the other way round.

  Args:
    pairs: [B,R], each word once in its group.
    words: i32[B,R,n], all that the pair's patch shows; -1 where there is none.
    scores: f32[B,R,n]; those that are not above 0 count as 0.
    groups: equal runs of rows that do not see one another.

  Returns:
    q and c of the module, f32[B,R,n], at the places of `words`; 0 for words
    that the group does not hold and patches that are not kept.
  """
  absent = jnp.iinfo(jnp.int32).max

  def one(word: jax.Array, keep: jax.Array, words: jax.Array,
          scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    held = jnp.sort(jnp.where(keep, word, absent))
    place = jnp.minimum(jnp.searchsorted(held, words), held.size - 1)
    there = (held[place] == words) & keep[:, None]
    share = jnp.maximum(scores, 0)
    share = share / jnp.maximum(share.sum(-1, keepdims=True), 1e-30)
    share = jnp.where(there, share, 0.0)
    total = jnp.zeros(held.shape).at[place].add(share)
    safe = lambda a: jnp.maximum(a, 1e-30)
    return share / safe(share.sum(-1, keepdims=True)), share / safe(
        total[place])

  cut = lambda a: a.reshape(groups, -1, *a.shape[2:])
  q, c = jax.vmap(one)(*map(cut, (pairs.word, pairs.keep, words, scores)))
  return q.reshape(words.shape), c.reshape(words.shape)
