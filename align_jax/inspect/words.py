"""What a visual token says, in words of the language model.

Two readings. Any connector's token has nearest words, by cosine with the rows
of the embedding table. ALIGN's token is a weighted mean of words, so it also
has a distribution: its top words, its entropy, and how many words carry it.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Words:
  """The k best words of each of n visual tokens.

  Attributes:
    ids: i32[n,k], vocabulary ids, best first.
    scores: f32[n,k], cosines or probabilities.
  """
  ids: np.ndarray
  scores: np.ndarray


@functools.partial(jax.jit, static_argnames=("k", "centred"))
def _nearest(tokens_nd: jax.Array, table_vd: jax.Array, k: int,
             centred: bool) -> tuple[jax.Array, jax.Array]:
  table = table_vd.astype(jnp.float32)
  tokens = tokens_nd.astype(jnp.float32)
  if centred:
    mean_d = table.mean(0)
    table, tokens = table - mean_d, tokens - mean_d
  unit = lambda x: x / jnp.maximum(
      jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-9)
  return jax.lax.top_k(unit(tokens) @ unit(table).T, k)


def nearest_words(tokens_nd: Any, table_vd: Any, k: int = 5,
                  centred: bool = False) -> Words:
  """The words whose embeddings point most nearly the same way.

  Args:
    tokens_nd: f[n,D] visual tokens.
    table_vd: f[V,D] the embedding table.
    k: words a token.
    centred: measure both from the table's mean row. Tables are off-centre, so
      that plain cosines are all alike and favour the same few words.
  """
  scores, ids = _nearest(jnp.asarray(tokens_nd), jnp.asarray(table_vd), k,
                         centred)
  return Words(np.asarray(ids), np.asarray(scores))


def top_words(probs_nv: Any, k: int = 5) -> Words:
  """The likeliest words of each token's distribution f[n,V]."""
  scores, ids = jax.lax.top_k(jnp.asarray(probs_nv), k)
  return Words(np.asarray(ids), np.asarray(scores))


def entropy(probs_nv: Any) -> np.ndarray:
  """f32[n] in nats; log V is uniform, 0 is one word."""
  p = jnp.asarray(probs_nv, jnp.float32)
  return np.asarray(-(p * jnp.log(jnp.maximum(p, 1e-30))).sum(-1))


def effective_words(probs_nv: Any, mass: float = 0.9) -> np.ndarray:
  """i32[n]: the fewest words that together carry `mass` of a token."""
  p = jnp.sort(jnp.asarray(probs_nv, jnp.float32), axis=-1)[:, ::-1]
  return np.asarray((jnp.cumsum(p, -1) < mass).sum(-1) + 1)


def show(tokenizer: Any, token: int) -> str:
  """A vocabulary entry as a person can read it in a picture.

  Most entries are a space and a word: the word alone is shown. A piece that
  goes on with a word gets a hyphen in front ("-ing"). What would be invisible
  is written out, and a fragment of a character is shown by its number.
  """
  text = tokenizer.decode([int(token)], skip_special_tokens=False,
                          clean_up_tokenization_spaces=False)
  piece = str(tokenizer.convert_ids_to_tokens(int(token)))
  bare = text.removeprefix(" ")
  if not bare.strip():
    return repr(bare)[1:-1].replace(" ", "␣") or "␣"
  if "�" in bare:
    return f"‹{int(token)}›"
  goes_on = bare[0].isalpha() and not piece.startswith(("Ġ", "▁", " "))
  return ("-" if goes_on else "") + "".join(
      c if c.isprintable() else repr(c)[1:-1] for c in bare)
