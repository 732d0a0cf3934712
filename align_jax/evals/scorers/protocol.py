"""What a scorer is."""

from collections.abc import Sequence

from align_jax.evals.tasks import Item


class Scorer:
  """A rule that scores predictions against items.

  Attributes:
    protocol: parser, normaliser, boundary and source, in a sentence or two.
    headline: the figure of `total` that stands for all.
    sampled: whether the headline is the mean of `scores`, so that questions
      may be redrawn for an interval. False for what only a corpus has.
    share: whether the headline lies between 0 and 1 and is shown in percent.
  """
  protocol = ""
  headline = "accuracy"
  sampled = True
  share = True

  def one(self, prediction: str, item: Item) -> float:
    """The score of one answer."""
    raise NotImplementedError

  def scores(self, predictions: Sequence[str],
             items: Sequence[Item]) -> list[float]:
    """A score for each answer."""
    return [float(self.one(p, i)) for p, i in zip(predictions, items,
                                                  strict=True)]

  def total(self, predictions: Sequence[str],
            items: Sequence[Item]) -> dict[str, float]:
    """All figures; `headline` is one of them."""
    return {self.headline: mean(self.scores(predictions, items))}


def mean(values: Sequence[float]) -> float:
  """Of at least one value.

  Raises:
    ValueError: there is nothing to score.
  """
  if not values:
    raise ValueError("no answers to score")
  return sum(values) / len(values)
