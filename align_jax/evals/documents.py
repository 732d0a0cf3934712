"""Small documents as a task: cells, fields, charts and covered words."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from align_jax.data.documents.facts import KINDS
from align_jax.data.documents.source import Documents
from align_jax.errors import InputError
from align_jax.evals.tasks import Item


class DocumentsTask:
  """Two questions on each of some documents that nothing was trained on.

  Attributes:
    split: that is asked: "test", or "validation" for choosing a learning
      rate.
    documents: how many.
    kinds: of documents.
    train_documents: of the split "train", for the question prior.
  """
  name, scorer, scoring, max_new_tokens = "documents", "exact", "both", 6
  beam = None
  answers: Sequence[str] = ()

  def __init__(self, split: str = "test", documents: int = 500,
               kinds: Sequence[str] = KINDS, size: int = 128,
               train_documents: int = 8000):
    if split == "train":
      raise InputError("task documents: split 'train' is what was trained "
                       "on; ask 'test' or 'validation'")
    kinds = tuple(kinds)
    self._source = Documents(split, "questions", documents, kinds, size=size)
    train = Documents("train", "questions", train_documents, kinds, size=size)
    self.n_images = documents
    self.training = [q[1:3] for i in range(train_documents)
                     for q in train.ask(i)]
    each = self._source.questions
    self.items = [
        Item(f"{self.name}/{split}/{i}/{number}", i, asked, answer, kind,
             index=i * each + number, closed=closed)
        for i in range(documents)
        for number, (kind, asked, answer, closed) in enumerate(
            self._source.ask(i))]

  def example(self, item: Item) -> dict[str, Any]:
    """<image>, the question, and the true answer as the last turn."""
    return self._source[item.index]

  def image(self, image: int) -> bytes:
    """The PNG of a document."""
    return self._source.image(image)

  def exchanged(self, seed: int) -> Sequence[int]:
    """For each document another one, the next of a random ring."""
    ring = np.random.default_rng(seed).permutation(self.n_images)
    partner = dict(zip(ring.tolist(), np.roll(ring, 1).tolist()))
    return [partner[i] for i in range(self.n_images)]

  def probe_images(self) -> None:
    """Nothing is probed: a document shows several things at once."""
