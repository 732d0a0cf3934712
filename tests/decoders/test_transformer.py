"""The decoder alone: packing, caches, ranges, dtypes."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.decoders import DECODERS
from align_jax.decoders.transformer import DecoderConfig, init_cache
from align_jax.ops.rope import Llama3Scaling
from align_jax.parallel.layout import AXES, Layout

CONFIG = DecoderConfig(
    vocab_size=50, width=16, layers=3, heads=4, kv_heads=2, mlp_width=24,
    head_width=6, rope_theta=100.0)
MODULE = CONFIG.make()


def _whole(m: Any, tokens: Any, positions: Any, segments: Any) -> Any:
  return m.logits(m(m.embed(tokens), positions, segments)[0])


@pytest.fixture(scope="module")
def params() -> Any:
  ids = jnp.zeros((1, 2), jnp.int32)
  made = jax.jit(functools.partial(MODULE.init, method=_whole))(
      jax.random.key(0), ids, ids, ids)["params"]
  # Peaked attention, so that leaks would show.
  return {**made, "layers": {**made["layers"],
                             "q_dhk": made["layers"]["q_dhk"] * 2},
          "embed_vd": made["embed_vd"] * 4}


def _logits(params: Any, tokens: Any, positions: Any = None,
            segments: Any = None, module: Any = MODULE) -> np.ndarray:
  tokens = jnp.asarray(tokens)
  if positions is None:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  if segments is None:
    segments = jnp.ones_like(tokens)
  return np.asarray(_run(module, params, tokens, positions, segments))


@functools.partial(jax.jit, static_argnums=0)
def _run(module: Any, params: Any, *inputs: Any) -> Any:
  return module.apply({"params": params}, *inputs, method=_whole)


def _rows(seed: int, *lengths: int) -> list[np.ndarray]:
  rng = np.random.default_rng(seed)
  return [rng.integers(0, 50, n) for n in lengths]


def test_packed_rows_give_the_logits_of_unpacked_samples(params: Any) -> None:
  samples = _rows(0, 5, 7, 3, 9)
  packed = [(0, 1, 2), (3,)]
  tokens, positions, segments = (np.zeros((2, 18), np.int32) for _ in "123")
  places = {}
  for row, members in enumerate(packed):
    at = 1  # a hole in front, too
    for segment, i in enumerate(members, 1):
      n = len(samples[i])
      tokens[row, at:at + n] = samples[i]
      positions[row, at:at + n] = np.arange(n)
      segments[row, at:at + n] = segment
      places[i] = (row, slice(at, at + n))
      at += n
  got = _logits(params, tokens, positions, segments)
  for i, (row, where) in places.items():
    alone = _logits(params, samples[i][None])[0]
    assert alone.std() > 1.0
    np.testing.assert_allclose(got[row, where], alone, atol=1e-5)
  # Without segments the samples would see each other.
  leaked = _logits(params, tokens, positions, (segments > 0).astype(int))
  assert np.abs(leaked - got).max() > 0.1


def test_later_tokens_do_not_matter(params: Any) -> None:
  a, b = _rows(1, 8, 8)
  b[:5] = a[:5]
  got = _logits(params, np.stack([a, b]))
  np.testing.assert_array_equal(got[0, :5], got[1, :5])
  assert np.abs(got[0, 5:] - got[1, 5:]).max() > 0.1


@jax.jit
def _read(params: Any, *inputs: Any) -> Any:
  """tokens, positions, segment ids, cache -> (logits, cache)."""

  def read(m: Any, tokens: Any, positions: Any, segments: Any, cache: Any
           ) -> Any:
    hidden, cache = m(m.embed(tokens), positions, segments, cache)
    return m.logits(hidden), cache

  return MODULE.apply({"params": params}, *inputs, method=read)


@pytest.mark.parametrize("chunks", [(9,), (4, 5), (4, 1, 1, 1, 1, 1)])
def test_reading_in_chunks_equals_reading_at_once(
    params: Any, chunks: tuple[int, ...]) -> None:
  tokens = np.stack(_rows(2, 9, 9))
  want = _logits(params, tokens)
  cache = init_cache(CONFIG, 2, 12, jnp.float32)
  assert cache.k.shape == (3, 2, 12, 2, 6)
  got, at = [], 0
  for n in chunks:
    positions = np.broadcast_to(np.arange(at, at + n), (2, n))
    logits, cache = _read(params, tokens[:, at:at + n], positions,
                          np.ones((2, n), np.int32), cache)
    got.append(logits)
    at += n
  np.testing.assert_allclose(np.concatenate(got, 1), want, atol=1e-5)
  assert int(cache.cursor) == 9
  np.testing.assert_array_equal(cache.segment_ids[:, 9:], 0)


def test_chunks_may_be_padded_on_any_side(params: Any) -> None:
  """Rows of other lengths, padded left in one chunk, right in the next."""
  samples = _rows(3, 6, 9)
  cache = init_cache(CONFIG, 2, 14, jnp.float32)
  cuts = [((2, 5), "left"), ((4, 4), "right")]
  read = [0, 0]
  got: list[list] = [[], []]
  for lengths, side in cuts:
    width = max(lengths)
    tokens, positions, segments = (
        np.full((2, width), fill, np.int32) for fill in (13, 5, 0))
    for row, n in enumerate(lengths):
      where = slice(width - n, width) if side == "left" else slice(0, n)
      part = slice(read[row], read[row] + n)
      tokens[row, where] = samples[row][part]
      positions[row, where] = np.arange(part.start, part.stop)
      segments[row, where] = 1
      read[row] += n
    logits, cache = _read(params, tokens, positions, segments, cache)
    for row in range(2):
      got[row].append(np.asarray(logits)[row][segments[row] > 0])
  for row in range(2):
    want = _logits(params, samples[row][None, :read[row]])[0]
    np.testing.assert_allclose(np.concatenate(got[row]), want, atol=1e-5)


def test_rows_of_a_cache_can_be_taken(params: Any) -> None:
  tokens = np.stack(_rows(4, 4, 4))
  follow = np.array([[1], [2], [3]])
  cache = init_cache(CONFIG, 2, 8, jnp.float32)
  at = np.broadcast_to(np.arange(4), (2, 4))
  _, cache = _read(params, tokens, at, np.ones((2, 4), int), cache)
  rows = np.array([1, 0, 1])
  got, _ = _read(params, follow, np.full((3, 1), 4), np.ones((3, 1), int),
                 cache.take_rows(rows))
  want = _logits(params, np.concatenate([tokens[rows], follow], 1))
  np.testing.assert_allclose(got[:, 0], want[:, -1], atol=1e-5)


def test_every_hidden_state(params: Any) -> None:
  tokens = np.stack(_rows(5, 6))
  at = np.arange(6)[None]

  def run(m: Any, return_all: bool) -> Any:
    return m(m.embed(tokens), at, np.ones((1, 6), int),
             return_all=return_all)[0]

  states, last = (jax.jit(lambda p, every=every: MODULE.apply(
      {"params": p}, every, method=run))(params) for every in (True, False))
  assert states.shape == (4, 1, 6, 16)
  np.testing.assert_allclose(states[-1], last, atol=1e-6)
  np.testing.assert_array_equal(states[0], params["embed_vd"][tokens])


def test_bf16_computes_in_bf16_and_gives_f32_logits(params: Any) -> None:
  tokens = np.stack(_rows(6, 6))
  module = CONFIG.make(dtype=jnp.bfloat16)
  got = _logits(params, tokens, module=module)
  assert got.dtype == np.float32
  assert module.apply({"params": params}, jnp.asarray(tokens),
                      method="embed").dtype == jnp.bfloat16
  want = _logits(params, tokens)
  assert np.abs(got - want).mean() < 0.2 * want.std()


@pytest.mark.parametrize("shape", [
    dict(data=2, fsdp=2, tensor=2), dict(fsdp=4, tensor=2),
    dict(data=2, tensor=2, context=2)])
def test_laid_out_over_devices_gives_the_same(params: Any, shape: dict
                                              ) -> None:
  sizes = [shape.get(axis, 1) for axis in AXES]
  mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(sizes), AXES)
  tokens = np.stack(_rows(7, *[8] * 8))
  module = CONFIG.make(layout=Layout(mesh))
  got = jax.jit(lambda p, t: module.apply(
      {"params": p}, t, jnp.broadcast_to(jnp.arange(8), (8, 8)),
      jnp.ones((8, 8), jnp.int32), method=_whole))(params, tokens)
  np.testing.assert_allclose(got, _logits(params, tokens), atol=1e-5)


def test_tied_and_untied_heads() -> None:
  ids = jnp.zeros((1, 2), jnp.int32)
  for tied in (True, False):
    module = dataclasses.replace(CONFIG, tied_head=tied).make()
    made = jax.eval_shape(lambda k, m=module: m.init(
        k, ids, ids, ids, method=_whole), jax.random.key(0))["params"]
    assert ("head_vd" in made) != tied


def test_abstract_initialisation_of_a_large_model_is_cheap() -> None:
  large = DecoderConfig(
      vocab_size=128_256, width=8192, layers=80, heads=64, kv_heads=8,
      mlp_width=28_672, tied_head=False, rope_theta=5e5,
      rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192))
  ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  made = jax.eval_shape(lambda i: large.make().init(
      jax.random.key(0), i, i, i, method=_whole), ids)
  count = sum(leaf.size for leaf in jax.tree.leaves(made))
  assert count == 70_553_706_496  # as published for Llama 3 70B


def test_impossible_sizes_are_listed_together() -> None:
  with pytest.raises(ValueError) as error:
    DecoderConfig(vocab_size=9, width=16, layers=1, heads=4, kv_heads=3,
                  head_width=5, mlp_width=8)
  assert str(error.value) == (
      "head_width 5 is odd; RoPE turns pairs; 4 heads do not divide into 3 "
      "kv_heads")


def test_registered() -> None:
  assert DECODERS.get("llama")(
      vocab_size=9, width=16, layers=1, heads=4, mlp_width=8).kv_heads == 4
