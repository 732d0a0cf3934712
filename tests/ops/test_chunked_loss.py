"""The chunked next-token loss equals the plain one, on any layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from align_jax.config import MeshConfig
from align_jax.ops.chunked_loss import chunked_loss, plain_loss
from align_jax.parallel.layout import ROWS, Layout
from align_jax.parallel.mesh import make_mesh


def _inputs(rows=8, marks=5, width=16, vocab=40):
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(rows, marks, width)).astype("f")
  head = rng.normal(size=(vocab, width)).astype("f")
  targets = rng.integers(0, vocab, (rows, marks)).astype("i")
  weights = (rng.random((rows, marks)) > 0.3).astype("f") * 1.5
  return hidden, head, targets, weights


def test_plain_loss_is_the_textbook_sum():
  hidden, head, targets, weights = _inputs(2, 3)
  total = 0.0
  for b in range(2):
    for m in range(3):
      logits = head.astype("d") @ hidden[b, m].astype("d")
      probs = np.exp(logits) / np.exp(logits).sum()
      total -= weights[b, m] * np.log(probs[targets[b, m]])
  np.testing.assert_allclose(
      plain_loss(hidden, head, targets, weights), total, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 40, 512])
def test_chunked_equals_plain_with_gradients(chunk):
  inputs = _inputs()
  for which in [(0,), (1,), (0, 1)]:
    want = jax.value_and_grad(plain_loss, which)(*inputs)
    got = jax.value_and_grad(
        lambda *a: chunked_loss(*a, chunk=chunk), which)(*inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        a, b, rtol=1e-5, atol=1e-6), got, want)


@pytest.mark.parametrize("shape", [{}, dict(data=2, fsdp=2, tensor=2)])
def test_capped_logits(shape):
  inputs = _inputs()
  layout = Layout(make_mesh(MeshConfig(**shape))) if shape else Layout()
  want = jax.value_and_grad(
      lambda *a: plain_loss(*a, soft_cap=3.0), (0, 1))(*inputs)
  got = jax.jit(jax.value_and_grad(
      lambda *a: chunked_loss(*a, layout=layout, chunk=7, soft_cap=3.0),
      (0, 1)))(*inputs)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=1e-6), got, want)
  assert abs(want[0] - plain_loss(*inputs)) > 1.0


@pytest.mark.parametrize("shape", [
    dict(data=8), dict(data=1, fsdp=8), dict(data=2, fsdp=2, tensor=2),
    dict(data=1, tensor=4, context=2), dict(data=4, fsdp=2),
])
@pytest.mark.parametrize("vocab", [40, 37])
def test_sharded_equals_unsharded(shape, vocab):
  inputs = _inputs(vocab=vocab)
  want = jax.value_and_grad(plain_loss, (0, 1))(*inputs)
  mesh = make_mesh(MeshConfig(**shape))
  layout = Layout(mesh)
  rows = NamedSharding(mesh, P(ROWS))
  placed = [jax.device_put(inputs[0], rows), jax.device_put(
      inputs[1], NamedSharding(mesh, P()))] + [
          jax.device_put(x, rows) for x in inputs[2:]]
  with jax.set_mesh(mesh):
    got = jax.jit(jax.value_and_grad(
        lambda *a: chunked_loss(*a, layout=layout, chunk=4), (0, 1)))(*placed)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=2e-6), got, want)


def test_no_array_of_all_logits():
  hidden, head, targets, weights = _inputs(8, 64, 16, 4096)
  grad = jax.jit(jax.grad(lambda h: chunked_loss(
      h, head, targets, weights, chunk=64)))
  temp = grad.lower(hidden).compile().memory_analysis().temp_size_in_bytes
  assert temp < 0.5 * 8 * 64 * 4096 * 4


def test_frozen_head_costs_no_gradient():
  inputs = _inputs()
  text = jax.jit(jax.grad(lambda h: chunked_loss(h, *inputs[1:]))).lower(
      inputs[0]).as_text()
  both = jax.jit(jax.grad(lambda h, w: chunked_loss(h, w, *inputs[2:]),
                          (0, 1))).lower(*inputs[:2]).as_text()
  assert text.count("dot_general") == both.count("dot_general") - 1


def test_a_bf16_pass_keeps_the_masters_gradient_in_f32():
  hidden, head, targets, weights = _inputs()
  low, grad = jax.value_and_grad(chunked_loss, 1)(
      jnp.bfloat16(hidden), head, targets, weights)
  assert low.dtype == grad.dtype == jnp.float32
  assert np.any(grad != grad.astype(jnp.bfloat16).astype(jnp.float32))
  np.testing.assert_allclose(
      low, plain_loss(hidden, head, targets, weights), rtol=0.02)
