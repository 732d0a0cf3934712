"""Each visual token toward its word by cosine alone, without negatives.

The patch-aligned loss in the spirit of PAT (2505.17316), whose abstract alone
could be read; the form is ours. Labels, draws and words are SEA's, so that the
two differ in the negatives and in nothing else.
"""

from typing import Any

import jax
import jax.numpy as jnp

from align_jax.objectives.sea import Sea, unit
from align_jax.parallel.layout import Layout


class PatchCosine(Sea):
  """Sum over the pairs of 1 - cos(x_i, t_i); options as SEA's."""

  name = "patch_cosine"
  learns_temperature = False

  def __call__(self, outputs: dict[str, Any], batch: dict[str, Any],
               rng: jax.Array, layout: Layout) -> jax.Array:
    """The loss summed over the pairs, f32[]."""
    x, t, keep = self.vectors(outputs, batch, rng, layout)
    cosine = (unit(x) * unit(t)).sum(-1)
    return jnp.where(keep, 1 - cosine, 0.0).sum()
