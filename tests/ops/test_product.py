"""Products on a CPU: equal to einsum's, and nothing new elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.ops.product import einsum
from align_jax.parallel.layout import AXES, Layout
from align_jax.plan.stage import abstract_mesh

EQUATIONS = {"bld,dhk->blhk": ((2, 3, 8), (8, 2, 4)),
             "blhk,hkd->bld": ((2, 3, 2, 4), (2, 4, 8)),
             "bld,df->blf": ((2, 3, 8), (8, 16))}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_value_and_gradients_are_those_of_einsum(equation):
  rng = np.random.default_rng(0)
  x, y = (jnp.asarray(rng.standard_normal(s), jnp.bfloat16)
          for s in EQUATIONS[equation])

  def of(product, x, y):
    out = product(equation, x, y)
    assert out.dtype == jnp.bfloat16
    return (jnp.sin(out.astype(jnp.float32))).sum()

  ours = lambda *a: einsum(*a, Layout())
  value, grads = jax.value_and_grad(of, (1, 2))(ours, x, y)
  plain, plain_grads = jax.value_and_grad(of, (1, 2))(jnp.einsum, x, y)
  assert np.allclose(value, plain, rtol=1e-2)
  for ours, theirs in zip(grads, plain_grads):
    assert ours.dtype == jnp.bfloat16
    # Both round f32 sums once; the order of a sum may differ.
    assert np.allclose(ours.astype(np.float32), theirs.astype(np.float32),
                       rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("dtype,platform", [
    ("float32", "cpu"), ("bfloat16", "tpu"), ("bfloat16", "gpu")])
def test_elsewhere_it_is_einsum(dtype, platform):
  mesh = abstract_mesh(dict.fromkeys(AXES, 1), platform)
  x, y = jnp.ones((2, 3, 8), dtype), jnp.ones((8, 16), dtype)
  jaxpr = jax.make_jaxpr(lambda x, y: einsum("bld,df->blf", x, y,
                                             Layout(mesh)))(x, y)
  plain = jax.make_jaxpr(lambda x, y: jnp.einsum("bld,df->blf", x, y))(x, y)
  assert str(jaxpr) == str(plain)
