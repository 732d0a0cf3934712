"""Every form of attention gives what the plain one gives, gradients too."""

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.config import MeshConfig
from align_jax.ops.attention import FORMS, LARGEST, attention, choose
from align_jax.ops.attention_chunked import SCORES, chunk_of, chunked
from align_jax.ops.attention_gpu import triton
from align_jax.ops.context import (
  balances,
  collect,
  in_order,
  spread,
  zigzag,
)
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh

SLOW = pytest.mark.slow


def packed(length: int, *lengths: int, rows: int = 2) -> dict[str, Any]:
  """Rows of samples of these lengths; the second row begins with a hole."""
  segments, positions = (np.zeros((rows, length), np.int32) for _ in "12")
  for row in range(rows):
    at = 3 * row
    for number, size in enumerate(lengths[row:], 1):
      size = min(size, length - at)
      segments[row, at:at + size] = number
      positions[row, at:at + size] = np.arange(size)
      at += size
  return dict(q_segments=segments, kv_segments=segments,
              q_positions=positions, kv_positions=positions)


def qkv(length: int, heads: int = 4, groups: int = 2, width: int = 8,
        rows: int = 2, seed: int = 0) -> list[jax.Array]:
  rng = np.random.default_rng(seed)
  shape = lambda h: (rows, length, h, width)
  return [jnp.asarray(s * rng.normal(size=shape(h)), jnp.float32)
          for s, h in ((2, heads), (1, groups), (1, groups))]


def outcome(form: str, arrays: list, **options: Any) -> Any:
  """(output, gradients of q, k and v)."""
  rng = np.random.default_rng(9)
  weights = jnp.asarray(rng.normal(size=arrays[0].shape), jnp.float32)

  def loss(q, k, v):
    out = attention(q, k, v, form=form, **options)
    return (out * weights).sum(), out

  (_, out), grads = jax.jit(jax.value_and_grad(
      loss, argnums=(0, 1, 2), has_aux=True))(*arrays)
  return [out, *grads]


def assert_same(got: list, want: list) -> None:
  for g, w in zip(got, want):
    assert np.linalg.norm(g - w) <= 1e-5 * np.linalg.norm(w)


CAUSAL = dict(causal=True, packed=True)


@pytest.mark.parametrize("form,length,options", [
    ("splash", 256, CAUSAL),
    ("triton", 256, CAUSAL | dict(window=0)),
    pytest.param("chunked", 50, CAUSAL, marks=SLOW),
    pytest.param("splash", 256, CAUSAL | dict(window=40, soft_cap=3.0),
                 marks=SLOW),
    pytest.param("splash", 250, CAUSAL, marks=SLOW),
    pytest.param("splash", 256, {}, marks=SLOW),
    pytest.param("triton", 200, CAUSAL, marks=SLOW),
    pytest.param("triton", 256, {}, marks=SLOW),
    ("chunked", 50, CAUSAL | dict(window=9, soft_cap=3.0)),
    pytest.param("chunked", 50, {}, marks=SLOW),
])
def test_packed_ragged_rows(form, length, options, monkeypatch):
  monkeypatch.setattr("align_jax.ops.attention_chunked.SCORES", 4096)
  arrays = qkv(length)
  where = packed(length, length // 3, length // 2, length // 9)
  assert (where["q_segments"] == 0).any(axis=1).all()
  got, want = (outcome(f, arrays, **where, **options)
               for f in (form, "plain"))
  assert_same(got, want)
  assert (np.asarray(got[0])[where["q_segments"] == 0] == 0).all()


@pytest.mark.parametrize("form", ["chunked", "triton", "cudnn", "splash"])
def test_rows_without_segments(form, monkeypatch):
  """As in a tower: every patch sees every patch, none is padding."""
  monkeypatch.setattr("align_jax.ops.attention_chunked.SCORES", 4096)
  arrays = qkv(100, groups=4)
  assert_same(outcome(form, arrays), outcome("plain", arrays))


def test_chunks_need_no_order():
  """Positions alone decide: tokens of a row shuffled, keys more than queries
  (a cache with holes)."""
  q, _, _ = qkv(10)
  _, k, v = qkv(37, seed=1)
  rng = np.random.default_rng(3)
  where = dict(
      q_segments=np.ones((2, 10), int), q_positions=np.tile(
          np.arange(20, 30), (2, 1)),
      kv_segments=rng.integers(0, 2, (2, 37)),
      kv_positions=np.stack([rng.permutation(37) for _ in "12"]))
  options = dict(causal=True, window=jnp.asarray(17))
  scale = 0.1
  want = jax.jit(functools.partial(
      attention, form="plain", scale=scale, **where, **options))(q, k, v)
  got = jax.jit(functools.partial(
      chunked, **where, **options, soft_cap=None, chunk=3))(q * scale, k, v)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_traced_window_chooses_among_kernels():
  arrays, where = qkv(256), packed(256, 90, 120)
  options = where | CAUSAL | dict(windows=(0, 40))
  for window in (0, 40):
    got = jax.jit(lambda w: attention(
        *arrays, form="splash", window=w, **options))(window)
    want = attention(*arrays, form="plain", window=window, **options)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("form,shape,balanced", [
    ("chunked", dict(data=2, tensor=2, context=2), True),
    ("splash", dict(data=1, tensor=2, context=2), True),
    *(pytest.param(form, shape, balanced, marks=SLOW)
      for form, shape, balanced in (
          ("plain", dict(data=1, context=4), True),
          ("chunked", dict(data=2, tensor=2, context=2), False),
          ("chunked", dict(data=1, context=8), True),
          ("splash", dict(data=1, tensor=2, context=2), False),
          ("splash", dict(data=1, context=4), True),
          ("splash", dict(data=2, tensor=4), False),
          ("triton", dict(data=2, tensor=4), False))),
])
def test_over_a_mesh_as_on_one_device(form, shape, balanced, monkeypatch):
  monkeypatch.setattr("align_jax.ops.attention_chunked.SCORES", 8192)
  length = 128 * 2 * shape.get("context", 1) if form in (
      "splash", "triton") else 64
  arrays = qkv(length)
  where = packed(length, length // 2, length // 3, length // 9)
  mesh = make_mesh(MeshConfig(**{"data": 1} | shape))
  layout = Layout(mesh)
  want = outcome("plain", arrays, **where, **CAUSAL)
  if not balanced:
    got = outcome(form, arrays, **where, **CAUSAL, layout=layout)
  else:
    deal = jax.jit(functools.partial(spread, layout=layout))
    got = outcome(form, [deal(x) for x in arrays],
                  **{k: deal(x) for k, x in where.items()}, **CAUSAL,
                  layout=layout, balanced=True)
    # `outcome` weighs places, so its weights are dealt out for the want.
    order = zigzag(length, layout.shards(("context",)))
    inverse = np.argsort(order)
    want = outcome_in(order, arrays, where)
    got = [np.asarray(g)[:, inverse] for g in got]
  assert_same(got, want)


def outcome_in(order: np.ndarray, arrays: list, where: dict) -> Any:
  """Of the plain form, with weights for tokens in this order."""
  rng = np.random.default_rng(9)
  weights = np.asarray(rng.normal(size=arrays[0].shape), np.float32)
  weights = weights[:, np.argsort(order)]

  def loss(q, k, v):
    out = attention(q, k, v, form="plain", **where, **CAUSAL)
    return (out * weights).sum(), out

  (_, out), grads = jax.jit(jax.value_and_grad(
      loss, argnums=(0, 1, 2), has_aux=True))(*arrays)
  return [out, *grads]


@pytest.mark.parametrize("shards", [2, pytest.param(3, marks=SLOW), 4])
def test_tokens_are_dealt_out_and_collected(shards):
  mesh = make_mesh(MeshConfig(data=1, context=shards))
  layout = Layout(mesh)
  length = 4 * shards
  x = np.arange(2 * length * 3.0).reshape(2, length, 3)
  dealt, back = jax.jit(lambda x: (
      y := spread(x, layout), collect(y, layout)))(x)
  order = zigzag(length, shards)
  np.testing.assert_array_equal(dealt, x[:, order])
  np.testing.assert_array_equal(back, x)
  np.testing.assert_array_equal(
      in_order(jnp.asarray(x[:, order]), shards, True), x)
  stacked = np.stack([x, -x])
  found = jax.jit(lambda x: collect(x, layout, axis=2))(stacked[:, :, order])
  np.testing.assert_array_equal(found, stacked)


@pytest.mark.parametrize("shards", [2, 4])
def test_devices_have_equal_work(shards):
  """Of a causal row, and of one with short samples."""
  length = 64
  order = zigzag(length, shards).reshape(shards, -1)
  work = [(places + 1).sum() for places in order]
  assert max(work) == min(work)
  contiguous = np.arange(length).reshape(shards, -1) + 1
  assert contiguous[-1].sum() > 2 * contiguous[0].sum()


def test_what_cannot_be_dealt_out_evenly_is_not():
  layout = Layout(make_mesh(MeshConfig(data=1, context=4)))
  assert balances(16, layout) and not balances(12, layout)
  assert not balances(16, Layout())


def _choose(platform: str = "tpu", shape: dict | None = None,
            **changes: Any) -> str:
  class There(Layout):
    platform = ""
  There.platform = platform
  layout = There(make_mesh(MeshConfig(**{"data": 1} | (shape or {}))))
  return choose(layout, **dict(
      length=2048, keys=2048, width=128, dtype=jnp.bfloat16, segments=True,
      causal=True, packed=True, static_window=True, window=False,
      soft_cap=False) | changes)


@pytest.mark.parametrize("want,changes", [
    ("splash", {}),
    ("splash", dict(window=True, soft_cap=True)),
    ("splash", dict(shape=dict(context=4))),
    ("chunked", dict(shape=dict(context=4), length=5000, keys=5000)),
    ("plain", dict(window=True, static_window=False)),
    ("plain", dict(packed=False)),              # a cache
    ("plain", dict(length=1, keys=50_000, packed=False)),
    ("chunked", dict(length=8192, keys=8192, packed=False)),
    ("plain", dict(length=256, keys=256)),
    ("plain", dict(length=729, keys=729, causal=False, segments=False)),
    ("splash", dict(length=1025, keys=1025, causal=False, segments=False)),
    ("triton", dict(platform="gpu")),
    ("plain", dict(platform="gpu", soft_cap=True)),
    ("chunked", dict(platform="gpu", length=16384, keys=16384,
                     shape=dict(context=2))),
    ("cudnn", dict(platform="gpu", causal=False, segments=False)),
    ("triton", dict(platform="gpu", causal=False, segments=False,
                    dtype=jnp.float32)),
    ("plain", dict(platform="cpu")),
    ("plain", dict(platform="cpu", length=LARGEST, keys=LARGEST)),
    ("chunked", dict(platform="cpu", length=LARGEST + 1, keys=LARGEST)),
])
def test_the_form_follows_platform_and_shape(want, changes):
  assert _choose(**changes) == want


def _sizes(jaxpr: Any) -> list[int]:
  found = []
  for equation in jaxpr.eqns:
    found += [v.aval.size for v in equation.outvars
              if hasattr(v.aval, "size")]
    for value in equation.params.values():
      for inner in value if isinstance(value, tuple | list) else [value]:
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns"):
          found += _sizes(inner)
  return found


@pytest.mark.parametrize("shape", [{}, dict(context=2)])
def test_no_array_of_queries_by_keys_beyond_4096(shape):
  length = 16_384
  layout = Layout(make_mesh(MeshConfig(data=1, **shape)))
  arrays = [jax.ShapeDtypeStruct((1, length, h, 8), jnp.float32)
            for h in (2, 1, 1)]
  ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

  def loss(q, k, v, ids):
    return attention(
        q, k, v, q_segments=ids, kv_segments=ids, q_positions=ids,
        kv_positions=ids, **CAUSAL, layout=layout,
        balanced=bool(shape)).sum()

  jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*arrays, ids)
  assert max(_sizes(jaxpr.jaxpr)) <= SCORES < length * length
  assert chunk_of(1, length, length, 2) * length * 2 <= SCORES


@pytest.mark.parametrize("change,says", [
    (dict(form="slash"), "did you mean 'splash'"),
    (dict(form="triton", causal=True), "packed rows only"),
    (dict(form="triton", window=3, **CAUSAL), "no window"),
    (dict(form="splash", window=jnp.asarray(3), **CAUSAL), "every value"),
])
def test_what_a_form_cannot_do_is_refused(change, says):
  with pytest.raises(ValueError, match=says):
    attention(*qkv(128), **packed(128, 60), **change)


@pytest.mark.parametrize("width", [64, 128])
def test_the_triton_form_lowers_for_a_gpu(width):
  """Without one: as far as the kernel's own code, backward too."""
  arrays = [jax.ShapeDtypeStruct((2, 512, h, width), jnp.bfloat16)
            for h in (4, 2, 2)]
  ids = jax.ShapeDtypeStruct((2, 512), jnp.int32)

  def loss(q, k, v, ids):
    return triton(q, k, v, q_segments=ids, kv_segments=ids, causal=True,
                  window=None, soft_cap=None, interpret=False).sum()

  lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(
      *arrays, ids).lower(lowering_platforms=("cuda",))
  assert lowered.as_text().count("custom_call @__gpu$xla.gpu.triton") >= 3


@pytest.mark.parametrize("causal", [False, True])
def test_the_cudnn_form_lowers_for_a_gpu(causal, monkeypatch):
  """Without one: as far as the library's calls. What JAX asks of the machine
  at hand, the library's version and the chip's, is answered for a Hopper."""
  from jax._src.cudnn import fused_attention_stablehlo as calls

  monkeypatch.setattr(calls, "check_cudnn_version", lambda: 91_100)
  monkeypatch.setattr(calls, "check_compute_capability",
                      lambda least: float(least) <= 9.0)
  length = 1024
  arrays = [jax.ShapeDtypeStruct((2, length, h, 64), jnp.bfloat16)
            for h in (4, 2, 2)]
  places = np.tile(np.arange(length), (2, 1)) if causal else None
  gpu = types.SimpleNamespace(platform="gpu", mesh=None,
                              shards=lambda axes: 1)

  def loss(q, k, v):
    return attention(q, k, v, causal=causal, packed=True, layout=gpu,
                     q_positions=places, kv_positions=places).sum()

  lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(
      *arrays).lower(lowering_platforms=("cuda",)).as_text()
  assert lowered.count("@__cudnn$fmhaSoftmax(") == 1
  assert lowered.count("@__cudnn$fmhaSoftmaxBackward(") == 1
  assert f"{length}x{length}x" not in lowered


def test_every_form_is_known():
  assert FORMS == ("plain", "chunked", "splash", "triton", "cudnn")
