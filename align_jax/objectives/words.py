"""A word list in an LLM's tokens, and what its words mean to that LLM."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.errors import InputError
from align_jax.ops.embed_lookup import embed_lookup
from align_jax.parallel.layout import Layout


def word_tokens(words: Sequence[str], tokenizer: Any,
                lead: str = " ") -> np.ndarray:
  """The sub-words of each word, i32[Q,M], -1 where a word has fewer.

  Args:
    words: Q of them.
    tokenizer: of the LLM.
    lead: what stands before a word; " " gives the tokens that it has inside
      a sentence, "" those at the start of one.

  Raises:
    InputError: words that the tokenizer turns into nothing; all listed. Or a
      tokenizer that joins a word to what stands before its space.
  """
  ids_of = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
  # Inside a sentence means behind a word: SentencePiece puts a space of its
  # own before a text, and would make two of a space that begins it.
  before = "a" if lead else ""
  known = ids_of(before) if before else []
  found = [ids_of(before + lead + word) for word in words]
  if joined := [word for word, ids in zip(words, found)
                if ids[:len(known)] != known]:
    raise InputError(
        f"this LLM's tokenizer joins {before + lead + joined[0]!r} at the "
        f"space, and {len(joined) - 1} other words; give the option lead=''")
  found = [ids[len(known):] for ids in found]
  empty = [word for word, ids in zip(words, found) if not ids]
  if empty:
    raise InputError(
        f"{len(empty)} words have no tokens in this LLM's vocabulary: "
        f"{', '.join(map(repr, empty[:10]))}{' ...' if empty[10:] else ''}")
  table = np.full((len(words), max(map(len, found))), -1, np.int32)
  for row, ids in zip(table, found):
    row[:len(ids)] = ids
  return table


def word_embeddings(embed_vd: jax.Array, table_qm: jax.Array,
                    words: jax.Array, layout: Layout = Layout()) -> jax.Array:
  """Mean of each word's sub-word embeddings (SEA, 2408.11813, eq 10).

  Args:
    embed_vd: f[V,D], the LLM's table.
    table_qm: i32[Q,M] of `word_tokens`.
    words: i32[B,R] in [0, Q).
    layout: of the table.

  Returns:
    f32[B,R,D], constants: no gradient goes into the table.
  """
  b, r = words.shape
  ids = jnp.take(table_qm, words, axis=0)  # [B,R,M]
  real = ids >= 0
  found = embed_lookup(
      jax.lax.stop_gradient(embed_vd),
      jnp.maximum(ids, 0).reshape(b, -1), dtype=embed_vd.dtype,
      layout=layout).reshape(b, r, ids.shape[-1], -1).astype(jnp.float32)
  total = jnp.where(real[..., None], found, 0.0).sum(2)
  return jax.lax.stop_gradient(
      total / jnp.maximum(real.sum(-1, keepdims=True), 1))
