"""From patch labels to pairs: which visual token learns which word, a step.

A label says what a patch shows: n words with a score each, -1 and 0 where
there is none (`align-jax label` makes them). SEA (2408.11813, section 3.2)
draws one of a patch's words by score, one patch of each window of tokens, and
keeps one token of each word in the batch. All shapes are static; what falls
away is masked.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

FIELDS = ("sea_words", "sea_scores")


class Pairs(NamedTuple):
  """Visual tokens and their words, R places a row.

  Attributes:
    token: i32[B,R], place in the row's N*T visual tokens.
    word: i32[B,R], index into the word list.
    keep: b[B,R], whether there is such a pair.
    patch: i32[B,R], the patch whose word it is, in the row's N*P patches.
  """
  token: jax.Array
  word: jax.Array
  keep: jax.Array
  patch: jax.Array


def of_slots(extras: dict[str, jax.Array],
             image_segment_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Words and scores of each image slot, [B,N,P,n].

  Args:
    extras: `sea_words` i32 and `sea_scores` f32, [B,S,I,P,n]: of the I images
      of each of a row's S samples.
    image_segment_ids: i32[B,N].

  Returns:
    -1 and 0 where a slot is empty, or its sample has more images than I.
  """
  words, scores = (extras[name] for name in FIELDS)
  sample = image_segment_ids - 1
  # Which of its sample's images a slot holds: how many came before it.
  same = (image_segment_ids[:, :, None] == image_segment_ids[:, None]) & (
      jnp.tri(image_segment_ids.shape[1], k=-1, dtype=bool))
  image = same.sum(-1)
  known = (sample >= 0) & (image < words.shape[2])
  take = jax.vmap(lambda x, s, i: x[s, i])
  place = (jnp.maximum(sample, 0), jnp.minimum(image, words.shape[2] - 1))
  known = known[..., None, None]
  return (jnp.where(known, take(words, *place), -1),
          jnp.where(known, take(scores, *place), 0.0))


def side_of(places: int, what: str) -> int:
  """The side of a square grid.

  Raises:
    ValueError: the places form none.
  """
  side = round(places ** 0.5)
  if side * side != places:
    raise ValueError(
        f"{places} {what} form no square grid, so a visual token cannot be "
        "told which patches it stands for; SEA needs a connector that keeps "
        "the grid or pools it by whole blocks, and a tower without its class "
        "token")
  return side


def check_grid(patches: int, tokens: int) -> int:
  """How many patches wide the block of a token is.

  Raises:
    ValueError: the tokens are no regular pooling of the patches.
  """
  fine, coarse = side_of(patches, "patches"), side_of(tokens, "visual tokens")
  if fine % coarse:
    raise ValueError(
        f"{tokens} visual tokens ({coarse} x {coarse}) do not pool {patches} "
        f"patches ({fine} x {fine}) by whole blocks, so a token has no "
        "patches of its own to learn the words of")
  return fine // coarse


def draw(rng: jax.Array, words: jax.Array, scores: jax.Array, tokens: int,
         window: int) -> Pairs:
  """One word a patch, one patch a token, one token a window.

  Args:
    rng: keys[B], one a row.
    words: i32[B,N,P,n], -1 where there is none.
    scores: f32[B,N,P,n]; those that are not above 0 are never drawn.
    tokens: T of each image, a regular pooling of its P patches.
    window: k; windows of k x k tokens, smaller ones at the far edges of a
      grid that k does not divide. Tokens without a label are not drawn.

  Returns:
    pairs with R = N * ceil(side / k)^2.
  """
  b, n, patches, _ = words.shape
  block, side = check_grid(patches, tokens), side_of(tokens, "visual tokens")
  across = -(-side // window)
  keys = jax.vmap(lambda key: jax.random.split(key, 2))(rng)

  # Eq 9: in proportion to the scores, not by their softmax.
  log_p = jnp.where((scores > 0) & (words >= 0), jnp.log(
      jnp.maximum(scores, 1e-30)), -jnp.inf)
  noise = jax.vmap(lambda k: jax.random.gumbel(k, words.shape[1:]))(
      keys[:, 0])
  chosen = (log_p + noise).argmax(-1, keepdims=True)
  word = jnp.take_along_axis(words, chosen, -1)[..., 0]
  has = jnp.isfinite(log_p).any(-1)

  # A labelled patch of each window's blocks at random: the largest number.
  luck = jax.vmap(lambda k: jax.random.uniform(k, words.shape[1:3]))(
      keys[:, 1])
  luck = jnp.where(has, luck, -1.0)
  fine = across * window * block
  grid = jnp.pad(luck.reshape(b, n, side * block, side * block), [
      (0, 0), (0, 0), (0, fine - side * block), (0, fine - side * block)],
      constant_values=-1.0)
  cell = window * block
  cells = grid.reshape(b, n, across, cell, across, cell).transpose(
      0, 1, 2, 4, 3, 5).reshape(b, n, across * across, cell * cell)
  best = cells.argmax(-1)
  keep = cells.max(-1) >= 0
  at = jnp.arange(across * across)
  row = (at // across) * cell + best // cell
  col = (at % across) * cell + best % cell
  row, col = (jnp.minimum(x, side * block - 1) for x in (row, col))
  patch = row * side * block + col
  token = (row // block) * side + col // block
  word = jnp.take_along_axis(word, patch, -1)
  image = jnp.arange(n)[:, None]
  flat = lambda x: x.reshape(b, n * across * across)
  return Pairs(flat(image * tokens + token), flat(jnp.where(keep, word, -1)),
               flat(keep), flat(image * patches + patch))


def first_of_each(rng: jax.Array, pairs: Pairs, groups: int = 1) -> Pairs:
  """Keeps one pair of each word, at random, and masks the others.

  Args:
    rng: keys[B], one a row.
    pairs: of all rows.
    groups: equal runs of rows, each of which keeps its own; 1 is the global
      batch.
  """
  b, r = pairs.word.shape
  luck = jax.vmap(lambda k: jax.random.uniform(k, (r,)))(rng).reshape(-1)
  keep = pairs.keep.reshape(-1)
  group = jnp.repeat(jnp.arange(groups), b * r // groups)
  word = jnp.where(keep, pairs.word.reshape(-1), -1)
  order = jnp.lexsort((luck, word, group))
  word, group, sorted_keep = word[order], group[order], keep[order]
  new = jnp.concatenate([jnp.ones(1, bool), (word[1:] != word[:-1])
                         | (group[1:] != group[:-1])])
  first = jnp.zeros_like(keep).at[order].set(new & sorted_keep)
  return pairs._replace(keep=first.reshape(b, r))
