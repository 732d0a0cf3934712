"""Greedy decoding with a cache: one token a step until every row has ended."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from align_jax.decoders.transformer import KVCache

# tokens, positions, segment_ids i32[B,1] and a cache -> (logits f32[B,V] of
# the next token, the cache with these tokens in it)
Step = Callable[[jax.Array, jax.Array, jax.Array, KVCache],
                tuple[jax.Array, KVCache]]


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
