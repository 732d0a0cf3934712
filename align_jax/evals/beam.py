"""Beam search at static shapes, equal to transformers' token for token.

  K beams a prompt; at each step the best (1 + stop tokens) * K continuations
  are looked at, those that end leave the beams, the best K that do not stay

  score of an answer = sum of its log-probabilities / length ** length_penalty

Source of the rules: huggingface/transformers 5.23, generation/utils.py
(`_beam_search`, early_stopping=False) and generation/logits_process.py
(RepetitionPenaltyLogitsProcessor, MinNewTokensLengthLogitsProcessor). The
penalty acts on log-probabilities and
on generated tokens alone, as it does there for prompts given as embeddings,
which prompts with images are. SAM pins transformers 4.33.2; what that release
does differently, if anything, was not tried.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from align_jax.evals.decoding import Beam

# Stands for minus infinity, as in transformers: sums of it stay finite.
NEVER = -1e9


@struct.dataclass
class _State:
  """Rows are prompts; B of them, K beams each, M tokens at most."""
  step: jax.Array  # i32[], tokens that the running beams have
  running_bkm: jax.Array
  scores_bk: jax.Array  # of the running beams, best first
  seen_bkv: jax.Array  # tokens each running beam has generated
  done_bkm: jax.Array  # the best ended answers
  done_scores_bk: jax.Array
  is_done_bk: jax.Array
  open_b: jax.Array  # whether a running beam may still win
  logits_bkv: jax.Array
  cache: Any


# Reads one token of each beam: (cache, tokens i32[B*K], step) -> logits
# f32[B*K,V] and the cache.
Advance = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]


def search(beam: Beam, logits_bv: jax.Array, cache: Any, advance: Advance,
           stop: jax.Array, live_b: jax.Array,
           max_new_tokens: int) -> jax.Array:
  """The best answer to each prompt: i32[B, max_new_tokens].

  Args:
    beam: how.
    logits_bv: after the prompts.
    cache: of B rows; its `take_rows` gathers rows.
    advance: reads one token of each beam.
    stop: i32[n], tokens that end an answer.
    live_b: False for rows that are padding.
    max_new_tokens: answers are cut there.
  """
  b, v = logits_bv.shape
  k, m = beam.size, max_new_tokens
  wide = min(max(2, 1 + stop.shape[0]) * k, k * v)
  cache = cache.take_rows(jnp.repeat(jnp.arange(b), k))
  empty = jnp.zeros((b, k, m), jnp.int32)
  # All beams are alike at first: only the first one counts.
  first = jnp.where(jnp.arange(k) == 0, 0.0, NEVER)
  state = _State(
      step=jnp.asarray(0), running_bkm=empty,
      scores_bk=jnp.broadcast_to(first, (b, k)),
      seen_bkv=jnp.zeros((b, k, v), bool), done_bkm=empty,
      done_scores_bk=jnp.full((b, k), NEVER),
      is_done_bk=jnp.zeros((b, k), bool), open_b=live_b,
      logits_bkv=jnp.broadcast_to(logits_bv[:, None], (b, k, v)),
      cache=cache)

  def one(s: _State) -> _State:
    s, tokens_bk, from_bk = _choose(beam, s, stop, wide, m)

    def read() -> tuple[jax.Array, Any]:
      rows = (jnp.arange(b)[:, None] * k + from_bk).reshape(-1)
      return advance(s.cache.take_rows(rows), tokens_bk.reshape(-1),
                     s.step - 1)

    # After the last token nothing is asked any more.
    logits, cache = jax.lax.cond(
        s.step < m, read,
        lambda: (s.logits_bkv.reshape(b * k, v), s.cache))
    return s.replace(logits_bkv=logits.reshape(b, k, v), cache=cache)

  state = jax.lax.while_loop(
      lambda s: (s.step < m) & s.open_b.any(), one, state)
  return state.done_bkm[:, 0]


def _choose(beam: Beam, s: _State, stop: jax.Array, wide: int, m: int
            ) -> tuple[_State, jax.Array, jax.Array]:
  """One step; gives the running beams' new tokens and where they came from."""
  b, k, v = s.logits_bkv.shape
  log_probs = jax.nn.log_softmax(s.logits_bkv.astype(jnp.float32))
  log_probs = jnp.where(s.seen_bkv, log_probs * beam.repetition_penalty,
                        log_probs)
  early = jnp.isin(jnp.arange(v), stop) & (s.step < beam.min_length)
  log_probs = jnp.where(early, NEVER, log_probs)
  total = (log_probs + s.scores_bk[..., None]).reshape(b, k * v)
  best_bw, place_bw = jax.lax.top_k(total, wide)
  from_bw, token_bw = place_bw // v, place_bw % v
  length = s.step + 1
  ends_bw = jnp.isin(token_bw, stop) | (length >= m)
  written = jnp.take_along_axis(s.running_bkm, from_bw[..., None], axis=1)
  written = jax.lax.dynamic_update_index_in_dim(
      written, token_bw.astype(jnp.int32), s.step, axis=2)

  # Answers that ended among the best K compete with those that ended before.
  ended_bw = ends_bw & (jnp.arange(wide) < k)
  ended_scores = best_bw / length.astype(jnp.float32) ** beam.length_penalty
  ended_scores += jnp.where(s.open_b[:, None], 0.0, NEVER)
  ended_scores += jnp.where(ended_bw, 0.0, NEVER)
  scores = jnp.concatenate([s.done_scores_bk, ended_scores], axis=1)
  done_scores, kept = jax.lax.top_k(scores, k)
  done = jnp.take_along_axis(
      jnp.concatenate([s.done_bkm, written], axis=1), kept[..., None], axis=1)
  is_done = jnp.take_along_axis(
      jnp.concatenate([s.is_done_bk, ended_bw], axis=1), kept, axis=1)

  # The best K that did not end go on.
  running_scores, going = jax.lax.top_k(
      best_bw + jnp.where(ends_bw, NEVER, 0.0), k)
  take = lambda x: jnp.take_along_axis(x, going, axis=1)
  from_bk, token_bk = take(from_bw), take(token_bw).astype(jnp.int32)
  seen = jnp.take_along_axis(s.seen_bkv, from_bk[..., None], axis=1)
  seen |= jax.nn.one_hot(token_bk, v, dtype=bool)

  # Could the best running beam still beat the worst of the ended ones?
  possible = running_scores[:, :1] / (
      length.astype(jnp.float32) ** beam.length_penalty)
  worst = jnp.where(is_done, done_scores.min(1, keepdims=True), NEVER)
  still = s.open_b & (possible > worst).any(1) & ~ends_bw.all(1)
  return s.replace(
      step=length, scores_bk=running_scores, seen_bkv=seen,
      running_bkm=jnp.take_along_axis(written, going[..., None], axis=1),
      done_bkm=done, done_scores_bk=done_scores, is_done_bk=is_done,
      open_b=still), token_bk, from_bk
