"""Next-token cross-entropy at the labelled positions of each row."""

from typing import Any

import jax
import jax.numpy as jnp

from align_jax.config import Config
from align_jax.ops.chunked_loss import chunked_loss
from align_jax.ops.cost import Product
from align_jax.parallel.layout import Layout


def labelled(weights: jax.Array, budget: int) -> jax.Array:
  """Places of the labelled positions: f32[B,L] -> i32[B,M], in order.

  Where a row has fewer than `budget` labels the rest are unlabelled places,
  whose weight is zero. More labels than the budget are refused on the host.
  """
  order = jnp.argsort(weights == 0, axis=1, stable=True)
  return order[:, :budget]


class NextToken:
  """Sum over labelled positions of -log p(next token) * its weight."""

  coupled = False
  model = "vlm"

  def __init__(self, config: Config):
    self.budget = min(config.data.labels_per_row, config.data.row_length)

  @classmethod
  def products(cls, config: Config, decoder: Any) -> list[Product]:
    """The head, on the budget of labelled positions of one row."""
    labels = min(config.data.labels_per_row, config.data.row_length)
    head = "embed_vd" if decoder.tied_head else "head_vd"
    return [Product(2.0 * labels * decoder.width * decoder.vocab_size,
                    f"/decoder/{head}")]

  def weight(self, batch: dict[str, Any],
             rng: jax.Array | None = None,
             layout: Layout | None = None) -> jax.Array:
    """The batch's total weight, f32[]; it draws nothing."""
    del rng, layout
    return batch["loss_weights"].sum()

  def __call__(self, outputs: dict[str, Any], batch: dict[str, Any],
               rng: jax.Array, layout: Layout) -> jax.Array:
    """The weighted sum, f32[]."""
    del rng
    place = labelled(batch["loss_weights"], self.budget)
    pick = lambda x: jnp.take_along_axis(x, place, axis=1)
    hidden = jnp.take_along_axis(outputs["hidden"], place[..., None], axis=1)
    return chunked_loss(
        layout.constrain(hidden, "bl."), outputs["head_vd"],
        pick(batch["targets"]), pick(batch["loss_weights"]), layout=layout,
        soft_cap=outputs["logit_soft_cap"])
