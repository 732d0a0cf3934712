"""The sharded look-up equals indexing, in value and in gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from align_jax.config import MeshConfig
from align_jax.ops.embed_lookup import embed_lookup
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.parallel.rules import shardings


@pytest.mark.parametrize("shape", [
    dict(data=8), dict(data=1, fsdp=8), dict(data=1, tensor=8),
    dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=2, tensor=2, context=2),
    dict(replica=2, data=2, fsdp=2),
])
@pytest.mark.parametrize("vocab,width", [(32, 16), (31, 16), (32, 6)])
def test_equals_indexing_on_every_layout(shape, vocab, width):
  rng = np.random.default_rng(0)
  table = rng.normal(size=(vocab, width)).astype("f")
  tokens = rng.integers(0, vocab, (8, 4)).astype("i")
  scale = rng.normal(size=(8, 4, width)).astype("f")
  mesh = make_mesh(MeshConfig(**shape))
  layout = Layout(mesh)
  where = shardings({"embed_vd": table}, mesh)["embed_vd"]
  rows = NamedSharding(mesh, layout.spec("b"))

  def loss(table, layout):
    found = embed_lookup(table, tokens_placed, dtype="float32", layout=layout)
    return (found ** 2 * scale).sum()

  tokens_placed = jnp.asarray(tokens)
  want = jax.value_and_grad(lambda t: (t[tokens] ** 2 * scale).sum())(
      jnp.asarray(table))
  tokens_placed = jax.device_put(tokens, rows)
  with jax.set_mesh(mesh):
    got = jax.jit(jax.value_and_grad(lambda t: loss(t, layout)))(
        jax.device_put(table, where))
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  np.testing.assert_allclose(got[1], want[1], rtol=1e-5, atol=1e-6)
  assert got[1].sharding.is_equivalent_to(where, 2)


def test_gradient_of_a_bf16_result_adds_up_in_f32():
  mesh = make_mesh(MeshConfig(data=8))
  tokens = jnp.zeros((8, 512), jnp.int32)
  with jax.set_mesh(mesh):
    grad = jax.jit(jax.grad(lambda t: embed_lookup(
        t, tokens, dtype="bfloat16", layout=Layout(mesh)).astype(
            "float32").sum()))(jnp.zeros((4, 2)))
  np.testing.assert_array_equal(grad[0], 8 * 512)
