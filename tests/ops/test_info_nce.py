"""The streamed InfoNCE is the plain one, gradients and shards included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.config import MeshConfig
from align_jax.ops.info_nce import info_nce, plain_info_nce
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh


def case(n: int = 24, d: int = 8, seed: int = 0):
  rng = np.random.default_rng(seed)
  x, t = rng.normal(size=(2, n, d)).astype(np.float32)
  unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
  return unit(x), unit(t), rng.random(n) < 0.7, np.float32(7.0)


def slow(x, t, keep, scale) -> float:
  """SEA, eq 11, word for word, as a sum over the kept pairs."""
  kept = np.flatnonzero(keep)
  loss = 0.0
  for i in kept:
    phi = lambda a, b: float(a @ b) / (
        np.linalg.norm(a) * np.linalg.norm(b)) * float(scale)
    to = np.log(np.exp(phi(x[i], t[i]))
                / sum(np.exp(phi(x[i], t[j])) for j in kept))
    back = np.log(np.exp(phi(t[i], x[i]))
                  / sum(np.exp(phi(t[i], x[j])) for j in kept))
    loss -= 0.5 * (to + back)
  return loss


def test_both_forms_are_the_papers_equation():
  args = case()
  assert plain_info_nce(*args) == pytest.approx(slow(*args), rel=1e-5)
  assert info_nce(*args, chunk=7) == pytest.approx(slow(*args), rel=1e-5)


def close(got, want):
  for a, b in zip(got, want):
    a, b = np.asarray(a), np.asarray(b)
    assert np.linalg.norm(a - b) <= 1e-5 * max(np.linalg.norm(b), 1e-6)


@pytest.mark.parametrize("n, chunk", [(24, 8), (23, 5), (24, 64)])
def test_gradients_are_the_plain_ones(n, chunk):
  x, t, keep, scale = case(n)
  of = lambda f: jax.jit(jax.value_and_grad(
      lambda x, t, s: f(x, t, keep, s), argnums=(0, 1, 2)))
  want, grads = of(plain_info_nce)(x, t, scale)
  got, ours = of(functools.partial(info_nce, chunk=chunk))(x, t, scale)
  assert got == pytest.approx(float(want), rel=1e-5)
  close(ours, grads)


@pytest.mark.parametrize("axes", [
    {"data": 2}, {"data": 4, "fsdp": 2}, {"data": 2, "tensor": 4}])
def test_shards_change_nothing(axes):
  x, t, keep, scale = case(32)
  mesh = make_mesh(MeshConfig(**({"data": 1} | axes)),
                   jax.devices()[:int(np.prod(list(axes.values())))])
  of = lambda f: jax.jit(jax.value_and_grad(
      lambda x, t, s: f(x, t, keep, s), argnums=(0, 1, 2)))
  want, grads = of(plain_info_nce)(x, t, scale)
  got, ours = of(functools.partial(
      info_nce, layout=Layout(mesh), chunk=3))(x, t, scale)
  assert got == pytest.approx(float(want), rel=1e-5)
  close(ours, grads)


def test_no_pair_is_kept():
  x, t, keep, scale = case()
  loss, grad = jax.value_and_grad(
      lambda x: info_nce(x, t, np.zeros_like(keep), scale))(x)
  assert loss == 0 and not np.asarray(grad).any()


def test_a_sharp_temperature_does_not_overflow():
  x, t, keep, _ = case()
  loss, grad = jax.value_and_grad(
      lambda x: info_nce(x, t, keep, jnp.float32(100.0), chunk=8))(x)
  want, same = jax.value_and_grad(
      lambda x: plain_info_nce(x, t, keep, jnp.float32(100.0)))(x)
  assert loss == pytest.approx(float(want), rel=1e-5)
  close([grad], [same])
