"""TextVQA 0.5.1, val.

  TextVQA_0.5.1_val.json: {"data": [{"question_id": 34602, "question": "...",
      "image_id": "003a8ae2ef43b901", "image_classes": [...],
      "answers": ["dakota", ... ten of them], "set_name": "val"}, ...]}
  train_images/003a8ae2ef43b901.jpg

Source of the layout: textvqa.org/dataset and facebookresearch/mmf:
mmf/datasets/builders/textvqa; haotian-liu/LLaVA: docs/Evaluation.md for the
image folder.
"""

from align_jax.data.tables import Row, json_rows
from align_jax.evals.readers.benchmark import SHORT, Benchmark, common


class TextVqa(Benchmark):
  """Scored by VQA accuracy over ten people's answers."""
  name, scorer = "textvqa", "vqa_evalai"

  def read(self) -> None:
    for row in json_rows(self.folder / "TextVQA_0.5.1_val.json", "data"):
      answers = row.texts("answers")
      kinds = row.fields.get("image_classes") or ["all"]
      image = self.path(row, "train_images", row.text("image_id") + ".jpg")
      self.add(row, row.text("question_id"), self.ask(row), common(answers),
               [image], kind=str(kinds[0]), answers=answers)
    train = self.folder / "TextVQA_0.5.1_train.json"
    if train.is_file():
      self.training = [(self.ask(row), common(row.texts("answers")))
                       for row in json_rows(train, "data")]

  def ask(self, row: Row) -> str:
    return row.text("question").capitalize() + SHORT
