"""VizWiz-VQA, val.

  val.json: [{"image": "VizWiz_val_00000000.jpg", "question": "...",
      "answers": [{"answer_confidence": "yes", "answer": "night time"}, ...
      ten], "answer_type": "other", "answerable": 1}, ...]
  val/VizWiz_val_00000000.jpg

Source of the layout: vizwiz.org/tasks-and-datasets/vqa;
haotian-liu/LLaVA: docs/Evaluation.md for the prompt. Papers report test-dev,
whose answers only the server has.
"""

from align_jax.data.tables import Row, json_rows
from align_jax.evals.readers.benchmark import SHORT, Benchmark, common

UNSURE = ("\nWhen the provided information is insufficient, respond with "
          "'Unanswerable'.")


class VizWiz(Benchmark):
  """An item's type is its answer type, "unanswerable" among them."""
  name, scorer = "vizwiz", "vqa_evalai"

  def read(self) -> None:
    for number, row in enumerate(json_rows(self.folder / "val.json")):
      answers = tuple(a.text("answer") for a in row.rows("answers"))
      self.add(row, number, self._ask(row), common(answers),
               [self.path(row, "val", row.text("image"))],
               kind=row.text("answer_type"), answers=answers)
    train = self.folder / "train.json"
    if train.is_file():
      self.training = [
          (self._ask(row), common([a.text("answer")
                                   for a in row.rows("answers")]))
          for row in json_rows(train)]

  def _ask(self, row: Row) -> str:
    return row.text("question") + UNSURE + SHORT
