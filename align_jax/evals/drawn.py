"""What tasks on drawn pictures have in common: all of them are known."""

from collections.abc import Sequence
from typing import Any

from align_jax.data.example import Source
from align_jax.errors import InputError
from align_jax.evals.baselines import exchange_sets
from align_jax.evals.tasks import Item


class DrawnTask:
  """Questions on the pictures of a source that draws them.

  Attributes:
    source: its examples are the questions, by an item's `index`; it gives the
      PNG of a picture by `image(i)`.
    n_images: pictures that are asked about.
  """
  name: str
  source: Source
  n_images: int
  scorer, scoring, max_new_tokens = "exact", "both", 6
  beam = None
  answers: Sequence[str] = ()  # each item has its own closed set

  def __init__(self, split: str):
    if split == "train":
      raise InputError(f"task {self.name}: split 'train' is what was trained "
                       "on; ask 'test' or 'validation'")

  def example(self, item: Item) -> dict[str, Any]:
    """<image>, the question, and the true answer as the last turn."""
    return self.source[item.index]

  def image(self, image: int) -> Any:
    """The PNG of a picture."""
    return self.source.image(image)

  def exchanged(self, seed: int) -> Sequence[int] | None:
    """For each picture another one."""
    return exchange_sets([1] * self.n_images, seed)

  def probe_images(self) -> None:
    """Nothing is probed: a picture shows several things at once."""
