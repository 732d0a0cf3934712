"""Greedy decoding with a cache: one token a step until every row has ended."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from align_jax.decoders.transformer import KVCache
from align_jax.ops.stack import apart
from align_jax.parallel.layout import Layout

# Bytes of layers that a processor's caches hold from one token to the next.
CACHED = 32 * 2 ** 20

# tokens, positions, segment_ids i32[B,1] and a cache -> (logits f32[B,V] of
# the next token, the cache with these tokens in it)
Step = Callable[[jax.Array, jax.Array, jax.Array, KVCache],
                tuple[jax.Array, KVCache]]


def for_tokens(params: Any, rows: int, layout: Layout) -> Any:
  """A decoder's parameters as steps of one token a row read them best.

  On a CPU a scan copies each layer out of its stack before it multiplies.
  With one row the copy takes longer than the product, so small decoders have
  their layers taken apart once, before the loop over tokens: 1.7 times as
  fast at 4 x 256. With more rows, or layers beyond the caches, which a copy
  by all cores fetches as well as a product by one does, it is slower.

  Args:
    params: of a `Decoder`.
    rows: B.
    layout: where it runs.
  """
  layers = params["layers"]
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(layers))
  if layout.platform != "cpu" or rows > 1 or size > CACHED:
    return params
  return params | {"layers": apart(layers)}


def continue_greedily(
    step: Step,
    logits: jax.Array,
    cache: KVCache,
    positions: jax.Array,
    live: jax.Array,
    count: int,
    stop: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Continues each row by its likeliest tokens.

  Args:
    step: reads one token a row.
    logits: f32[B,V] after the prompt.
    cache: the prompt, with room for `count` - 1 tokens more.
    positions: i32[B], of the first new token.
    live: b[B]; the other rows are padding.
    count: tokens to make, at least 1.
    stop: i32[E], tokens that end a row; may be empty.

  Returns:
    (i32[B,count], i32[]): a row repeats its stop token once it has ended, and
    so many columns were made before all rows had; the rest repeat the last.
  """
  choose = lambda logits: logits.argmax(-1).astype(jnp.int32)
  segments = live.astype(jnp.int32)[:, None]
  token = choose(logits)
  made = jnp.broadcast_to(token[:, None], (len(token), count))

  def more(state: tuple[Any, ...]) -> jax.Array:
    i, _, _, ended, _ = state
    return (i < count) & ~ended.all()

  def one(state: tuple[Any, ...]) -> tuple[Any, ...]:
    i, token, made, ended, cache = state
    logits, cache = step(token[:, None], (positions + i - 1)[:, None],
                         segments, cache)
    token = jnp.where(ended, token, choose(logits))
    # This column and those after it, in case it is the last.
    made = jnp.where(jnp.arange(count) >= i, token[:, None], made)
    return i + 1, token, made, ended | jnp.isin(token, stop), cache

  ended = jnp.isin(token, stop) | ~live
  i, _, made, _, _ = jax.lax.while_loop(
      more, one, (jnp.int32(1), token, made, ended, cache))
  return made, i
