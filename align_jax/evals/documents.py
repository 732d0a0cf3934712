"""Small documents as a task: cells, fields, charts and covered words."""

from collections.abc import Sequence

from align_jax.data.documents.facts import KINDS, SCRAP
from align_jax.data.documents.source import Documents
from align_jax.errors import InputError
from align_jax.evals.drawn import DrawnTask
from align_jax.evals.tasks import Item


class DocumentsTask(DrawnTask):
  """Two questions on each of some documents that nothing was trained on.

  Attributes:
    split: that is asked: "test", or "validation" for choosing a learning
      rate.
    documents: how many.
    kinds: of documents, none of them a scrap.
    train_documents: of the split "train", for the question prior.
  """
  name = "documents"

  def __init__(self, split: str = "test", documents: int = 500,
               kinds: Sequence[str] = KINDS, size: int = 128,
               train_documents: int = 8000):
    super().__init__(split)
    kinds = tuple(kinds)
    if SCRAP in kinds:
      raise InputError(f"documents: a {SCRAP} may say anything, so that no "
                       "closed set of answers can be scored; kinds are "
                       f"{', '.join(KINDS)}")
    self.source = Documents(split, "questions", documents, kinds, size=size)
    train = Documents("train", "questions", train_documents, kinds, size=size)
    self.n_images = documents
    self.training = [q[1:3] for i in range(train_documents)
                     for q in train.ask(i)]
    each = self.source.questions
    self.items = [
        Item(f"{self.name}/{split}/{i}/{number}", i, asked, answer, kind,
             index=i * each + number, closed=closed)
        for i in range(documents)
        for number, (kind, asked, answer, closed) in enumerate(
            self.source.ask(i))]
