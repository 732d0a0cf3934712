"""Visual tokens land where visual_index says, and gradients come back."""

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.ops.insert_tokens import insert_tokens


def _case():
  rng = np.random.default_rng(0)
  text = rng.normal(size=(2, 6, 3)).astype("f")
  bank = rng.normal(size=(2, 4, 3)).astype("f")
  index = np.array([[-1, 2, 0, -1, 3, -1], [-1, -1, -1, -1, 1, 0]], "i")
  return text, bank, index


def test_every_position_has_its_own_embedding():
  text, bank, index = _case()
  out = insert_tokens(text, bank, index)
  for b in range(2):
    for l in range(6):
      want = text[b, l] if index[b, l] < 0 else bank[b, index[b, l]]
      np.testing.assert_array_equal(out[b, l], want)


def test_gradient_equals_that_of_the_plain_gather():
  text, bank, index = _case()
  weight = jnp.arange(36.0).reshape(2, 6, 3)

  def plain(text, bank):
    visual = jnp.take_along_axis(
        bank, jnp.maximum(index, 0)[..., None], axis=1)
    return (jnp.where(index[..., None] >= 0, visual, text) ** 2
            * weight).sum()

  ours = lambda text, bank: (insert_tokens(text, bank, index) ** 2
                             * weight).sum()
  for got, want in zip(jax.grad(ours, (0, 1))(text, bank),
                       jax.grad(plain, (0, 1))(text, bank)):
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_backward_has_no_floating_point_scatter():
  text, bank, index = _case()
  compiled = jax.jit(jax.grad(
      lambda t, b: (insert_tokens(t, b, index) ** 2).sum(), (0, 1))).lower(
          text, bank).as_text()
  for line in compiled.splitlines():
    assert not ("stablehlo.scatter" in line and "f32" in line), line
