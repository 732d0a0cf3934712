"""Equality of strings, after a normaliser or after none."""

import string

from align_jax.evals.scorers.protocol import Scorer
from align_jax.evals.tasks import Item

_DROP = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
  """Lower case, no punctuation, single spaces.

  >>> normalise(" A Circle. ")
  'a circle'
  """
  return " ".join(text.lower().translate(_DROP).split())


def exact_match(prediction: str, truth: str) -> bool:
  """Whether two answers are equal once normalised."""
  return normalise(prediction) == normalise(truth)


class Exact(Scorer):
  """Our own plain rule; several accepted answers are alternatives."""
  protocol = ("exact match after lower-casing, dropping punctuation and "
              "joining white space")

  def one(self, prediction: str, item: Item) -> float:
    return any(exact_match(prediction, truth) for truth in item.answers)
