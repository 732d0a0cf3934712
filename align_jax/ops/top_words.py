"""The best words of each patch, among millions, a chunk of words at a time."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

CHUNK = 8192  # words at a time, on each device


def plain_top_words(patches: jax.Array, words_we: jax.Array, n: int,
                    sign: float = 1.0) -> tuple[jax.Array, jax.Array]:
  """The reference: all scores at once. See `top_words`."""
  scores, ids = jax.lax.top_k(sign * (patches @ words_we.T), n)
  return ids, scores


def placed(words_we: np.ndarray, mesh: Mesh | None = None) -> jax.Array:
  """f32[W,E] on its devices, with the zeros that `top_words` would add.

  Words that fit on all devices together need not fit on one.
  """
  if mesh is None:
    return jnp.asarray(words_we)
  count, shards = len(words_we), mesh.size
  rows = shards * _rows(count, shards, CHUNK)
  return jax.make_array_from_callback(
      (rows, words_we.shape[1]), NamedSharding(mesh, P(mesh.axis_names)),
      lambda at: np.pad(words_we[at], [
          (0, len(range(*at[0].indices(rows))) - len(words_we[at])), (0, 0)]))


def _rows(count: int, shards: int, chunk: int) -> int:
  """Words of one device: whole chunks."""
  chunk = min(chunk, -(-count // shards))
  return -(-count // (chunk * shards)) * chunk


def top_words(patches: jax.Array, words_we: jax.Array, n: int,
              sign: float = 1.0, *, chunk: int = CHUNK,
              mesh: Mesh | None = None,
              count: int = 0) -> tuple[jax.Array, jax.Array]:
  """The n words of the largest sign * cosine, best first.

  Never holds patches x words: n candidates go from chunk to chunk. On a mesh
  each device looks through its own words and the candidates meet once.

  Args:
    patches: f32[I,P,E], of unit length.
    words_we: f32[W,E], of unit length. On a mesh W may be any number.
    n: at most W.
    sign: -1 where small cosines mean likeness (SEA, 2408.11813, eq 8).
    chunk: words at a time, on each device.
    mesh: over all of whose devices the words are cut.
    count: W, where `words_we` is `placed` and so has more rows.

  Returns:
    words i32[I,P,n] and scores f32[I,P,n]; of equal scores the lower word.
  """
  shards = mesh.size if mesh is not None else 1
  count = count or words_we.shape[0]
  chunk = min(chunk, -(-count // shards))
  turns = _rows(count, shards, chunk) // chunk
  padded = jnp.pad(words_we, [
      (0, shards * turns * chunk - len(words_we)), (0, 0)])

  def local(patches, words, first):
    # Masked scores lie below all others, so that padding is never chosen.
    start = jnp.full((*patches.shape[:2], n), -jnp.inf), jnp.zeros(
        (*patches.shape[:2], n), jnp.int32)

    def turn(best, part):
      table, at = part
      ids = at + jnp.arange(chunk)
      scores = sign * jnp.einsum("ipe,we->ipw", patches, table,
                                 preferred_element_type=jnp.float32)
      scores = jnp.where(ids < count, scores, -jnp.inf)
      # What was found before stands first, and wins where scores are equal.
      return _best(jnp.concatenate([best[0], scores], -1), jnp.concatenate(
          [best[1], jnp.broadcast_to(ids, scores.shape)], -1), n), None

    starts = first + chunk * jnp.arange(turns)
    return jax.lax.scan(turn, start, (
        words.reshape(turns, chunk, -1), starts))[0]

  if shards == 1:
    scores, ids = local(patches, padded, 0)
    return ids, scores
  axes = mesh.axis_names

  def one(patches, words):
    first = jax.lax.axis_index(axes) * turns * chunk
    scores, ids = (jax.lax.all_gather(x, axes, axis=-1, tiled=True)
                   for x in local(patches, words, first))
    return _best(scores, ids, n)

  scores, ids = jax.shard_map(
      one, mesh=mesh, in_specs=(P(), P(axes)), out_specs=(P(), P()),
      check_vma=False)(patches, padded)
  return ids, scores


def _best(scores: jax.Array, ids: jax.Array,
          n: int) -> tuple[jax.Array, jax.Array]:
  scores, place = jax.lax.top_k(scores, n)
  return scores, jnp.take_along_axis(ids, place, -1)
