"""How a Q-Former starts."""

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.connectors.qformer import Layers

SIZES = dict(depth=4, period=2, width=16, heads=2, mlp_width=32,
             memory_width=6, queries=3, text=True, dropout=0.0)


def test_at_first_a_position_passes_through_but_for_its_norm():
  rng = np.random.default_rng(0)
  x = rng.normal(2, 3, (2, 5, 16)).astype("f")
  memory = rng.normal(size=(2, 4, 6)).astype("f")
  mask = jnp.ones((2, 5), bool)
  layers = Layers(**SIZES)
  params = jax.jit(layers.init)(jax.random.key(0), x, memory, mask)
  norm = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
  np.testing.assert_allclose(
      layers.apply(params, x, memory, mask), norm, atol=1e-4)
  # What hears nothing yet is taught at once, the first layer as the last.
  grads = jax.jit(jax.grad(lambda p: (layers.apply(
      p, norm, memory, mask) * x[::-1]).sum()))(params)["params"]
  for outputs in (grads["layers"]["o_hke"], grads["layers"]["query_down_fe"],
                  grads["layers"]["text_down_fe"],
                  grads["cross"]["layers"]["o_hke"]):
    sizes = np.linalg.norm(np.asarray(outputs).reshape(len(outputs), -1),
                           axis=1)
    assert sizes.min() > 0.5 * sizes.max() > 0
