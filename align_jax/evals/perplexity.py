"""How well a decoder still knows plain text, before and after training."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from align_jax.data.example import Source
from align_jax.data.render import Renderer
from align_jax.errors import InputError


def perplexity(decoder: nn.Module, params: Any, renderer: Renderer,
               source: Source, rows: int = 32,
               least: int = 0) -> dict[str, float]:
  """exp of the mean loss on all supervised tokens of a source's texts.

  Args:
    decoder: the module, as `VLM.decoder`.
    params: its own.
    renderer: of the run; texts are read as it writes them.
    source: of examples without images.
    rows: texts at a time.
    least: fewer supervised tokens are refused.

  Returns:
    `perplexity`, `tokens` and `nats_per_byte`, which does not depend on the
    tokenizer.

  Raises:
    InputError: too few tokens.
  """
  samples = [renderer(source[i]) for i in range(len(source))]
  said = sum(len(turn["content"].encode()) for i in range(len(source))
             for turn in source[i]["conversation"]
             if turn["role"] == "assistant")
  samples.sort(key=len)
  loss, count = 0.0, 0
  for at in range(0, len(samples), rows):
    part = samples[at:at + rows]
    length = -(-max(map(len, part)) // 32) * 32  # so that few are compiled
    tokens, targets, live = np.zeros((3, rows, length), np.int32)
    weights = np.zeros((rows, length), np.float32)
    for row, sample in enumerate(part):
      own = np.s_[row, :len(sample)]
      tokens[own], targets[own], live[own] = sample.tokens, sample.targets, 1
      weights[own] = sample.loss_weights
    loss += float(_loss(decoder, params, tokens, targets, weights, live))
    count += int(np.count_nonzero(weights))
  if count < max(least, 1):
    raise InputError(f"perplexity on {count:,} tokens, but at least "
                     f"{max(least, 1):,} are asked for")
  return {"perplexity": math.exp(loss / count), "tokens": count,
          "nats_per_byte": loss / said}


@functools.partial(jax.jit, static_argnums=0)
def _loss(decoder: nn.Module, params: Any, tokens: jax.Array,
          targets: jax.Array, weights: jax.Array,
          live: jax.Array) -> jax.Array:
  """The summed loss of texts i32[B,L], each alone in its row."""
  def run(decoder: nn.Module) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = decoder(decoder.embed(tokens), positions, live)
    log_p = jax.nn.log_softmax(decoder.logits(hidden))
    of = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return -(of * weights).sum()

  return nn.apply(run, decoder)({"params": params})
