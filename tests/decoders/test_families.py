"""A decoder with every switch on: packed, in chunks, on a mesh; LongRoPE."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.decoders.transformer import DecoderConfig, init_cache
from align_jax.ops.rope import LinearScaling, LongRope
from align_jax.parallel.layout import AXES, Layout
from align_jax.parallel.rules import shardings
from align_jax.train.select import flatten, unflatten

V = 48
EVERY = DecoderConfig(
    vocab_size=V, width=16, layers=3, heads=4, kv_heads=2, mlp_width=24,
    head_width=8, rotary_width=4, rope_theta=300.0, local_rope_theta=30.0,
    rope_scaling=LinearScaling(3.0), windows=(3, 0, 5), norm_offset=1.0,
    qk_norm=True, post_norms=True, activation="gelu_tanh", attn_scale=0.6,
    attn_soft_cap=2.0, logit_soft_cap=4.0, embed_scale=4.0, qkv_bias=True,
    o_bias=True, mlp_bias=True)
LONG = DecoderConfig(
    vocab_size=V, width=16, layers=2, heads=4, mlp_width=24,
    rope_theta=50.0, rope_scaling=LongRope((1.0, 1.5), (2.0, 6.0), 8, 1.2))


def _whole(m: Any, tokens: Any, positions: Any, segments: Any) -> Any:
  return m.logits(m(m.embed(tokens), positions, segments)[0])


@functools.cache
def _params(config: DecoderConfig) -> Any:
  """Random ones, norms and biases too; attention is peaked."""
  ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  shapes = jax.eval_shape(lambda i: config.make().init(
      jax.random.key(0), i, i, i, method=_whole), ids)["params"]
  rng = np.random.default_rng(0)

  def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
    if "norm" in path:
      return rng.normal(1.0 - config.norm_offset, 0.3, shape)
    if "bias" in path or "embed" in path:
      return rng.normal(0, 0.4, shape)
    fan = shape[1] * (shape[2] if path.endswith("o_hkd") else 1)
    gain = 3.0 if path.endswith(("q_dhk", "k_dgk")) else 1.0
    return rng.normal(0, gain * fan ** -0.5, shape)

  return unflatten({path: jnp.asarray(draw(path, leaf.shape), jnp.float32)
                    for path, leaf in flatten(shapes).items()})


@functools.partial(jax.jit, static_argnums=0)
def _run(config: DecoderConfig, params: Any, *inputs: Any) -> Any:
  return config.make().apply({"params": params}, *inputs, method=_whole)


def _alone(config: DecoderConfig, tokens: np.ndarray) -> np.ndarray:
  """Logits of one sample, padded so that few shapes are compiled."""
  padded = np.zeros((1, 16), np.int32)
  padded[0, :len(tokens)] = tokens
  inside = (np.arange(16) < len(tokens)).astype(np.int32)[None]
  return np.asarray(_run(config, _params(config), padded,
                         np.arange(16)[None] * inside, inside)
                    )[0, :len(tokens)]


def _samples(*lengths: int) -> list[np.ndarray]:
  rng = np.random.default_rng(1)
  return [rng.integers(0, V, n) for n in lengths]


@pytest.mark.parametrize("config", [EVERY, LONG], ids=["every", "longrope"])
def test_packed_rows_give_the_logits_of_unpacked_samples(
    config: DecoderConfig) -> None:
  """LongRoPE: a short sample and a long one share a row."""
  samples = _samples(5, 10)
  tokens, positions, segments = (np.zeros((1, 16), np.int32) for _ in "123")
  at = 1
  for segment, sample in enumerate(samples, 1):
    where = slice(at, at + len(sample))
    tokens[0, where], positions[0, where] = sample, np.arange(len(sample))
    segments[0, where] = segment
    at += len(sample)
  got = np.asarray(_run(config, _params(config), tokens, positions, segments))
  want = [_alone(config, sample) for sample in samples]
  np.testing.assert_allclose(got[0, 1:], np.concatenate(want), atol=2e-5)
  assert np.concatenate(want).std() > 0.5
  # A sample is not what its neighbour's length would make of it.
  if config is LONG:
    other = dataclasses.replace(config, rope_scaling=dataclasses.replace(
        config.rope_scaling, short=config.rope_scaling.long))
    changed = np.asarray(_run(other, _params(config), tokens, positions,
                              segments))
    np.testing.assert_allclose(changed[0, 6:], want[1], atol=2e-5)
    assert np.abs(changed[0, 1:6] - want[0]).max() > 0.1


@functools.partial(jax.jit, static_argnums=0)
def _read(config: DecoderConfig, params: Any, *inputs: Any) -> Any:
  def read(m: Any, tokens: Any, *where: Any) -> Any:
    hidden, cache = m(m.embed(tokens), *where)
    return m.logits(hidden), cache

  return config.make().apply({"params": params}, *inputs, method=read)


def test_reading_in_chunks_equals_reading_at_once() -> None:
  """Windows reach back into the cache, and end there."""
  sample, = _samples(12)
  cache = init_cache(EVERY, 1, 14, jnp.float32)
  got, at = [], 0
  for n in (6, 1, 1, 1, 1, 1, 1):
    logits, cache = _read(
        EVERY, _params(EVERY), sample[None, at:at + n],
        np.arange(at, at + n)[None], np.ones((1, n), np.int32), cache)
    got.append(logits[0])
    at += n
  np.testing.assert_allclose(np.concatenate(got), _alone(EVERY, sample),
                             atol=2e-5)


def _on_mesh(shape: dict[str, int]) -> tuple[Layout, Any]:
  """A layout, and the parameters where its rules put them."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(
      [shape.get(axis, 1) for axis in AXES]), AXES)
  flat = flatten(_params(EVERY))
  return Layout(mesh), unflatten(jax.device_put(flat, shardings(flat, mesh)))


def _batch() -> tuple[np.ndarray, ...]:
  tokens = np.random.default_rng(2).integers(0, V, (8, 8)).astype(np.int32)
  return (tokens, np.tile(np.arange(8), (8, 1)), np.ones((8, 8), np.int32))


def test_sharded_equals_unsharded() -> None:
  """Every switch on."""
  layout, placed = _on_mesh(dict(data=2, fsdp=2, tensor=2))
  got = jax.jit(lambda params: EVERY.make(layout=layout).apply(
      {"params": params}, *_batch(), method=_whole))(placed)
  np.testing.assert_allclose(got, _run(EVERY, _params(EVERY), *_batch()),
                             atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [
    dict(data=2, fsdp=2, tensor=2), dict(fsdp=2, tensor=2, context=2)])
def test_sharded_gradients_equal_unsharded(shape: dict[str, int]) -> None:
  """Of every parameter, with every switch on."""
  aim = np.random.default_rng(3).normal(size=(8, 8, V)).astype(np.float32)

  def grads(layout: Layout, params: Any) -> Any:
    return flatten(jax.jit(jax.grad(lambda params: (EVERY.make(
        layout=layout).apply({"params": params}, *_batch(), method=_whole)
                                                    * aim).sum()))(params))

  want = grads(Layout(), _params(EVERY))
  for path, leaf in grads(*_on_mesh(shape)).items():
    mine = want[path]
    assert np.abs(mine).max() > 0, path
    assert np.linalg.norm(leaf - mine) / np.linalg.norm(mine) < 1e-5, path


def test_a_cache_is_good_up_to_a_length() -> None:
  assert LONG.cached_positions == 8
  assert EVERY.cached_positions is None


def test_impossible_switches_are_listed_together() -> None:
  with pytest.raises(ValueError) as error:
    DecoderConfig(vocab_size=9, width=16, layers=2, heads=4, mlp_width=8,
                  windows=(4, 0, -4), activation="gelu",
                  rope_scaling=LongRope((1.0,), (1.0, 2.0), 8, 1.0))
  assert str(error.value) == (
      "rope_scaling.short has 1 divisors, rotary_width 4 needs 2; "
      "3 windows for 2 layers; windows below 0: [4, 0, -4]; "
      "unknown activation 'gelu'; did you mean 'gelu_tanh'? "
      "(known: silu, gelu_tanh)")
  with pytest.raises(ValueError, match="rotary_width 6 is odd or wider"):
    DecoderConfig(vocab_size=9, width=16, layers=2, heads=4, mlp_width=8,
                  rotary_width=6)
  with pytest.raises(ValueError, match="no layer has a window"):
    DecoderConfig(vocab_size=9, width=16, layers=2, heads=4, mlp_width=8,
                  local_rope_theta=10.0)
