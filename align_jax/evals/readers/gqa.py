"""GQA, testdev_balanced.

  testdev_balanced_questions.json: {"201307251": {"question": "Is it overcast?",
      "imageId": "n161313", "answer": "no", "isBalanced": true,
      "types": {"structural": "verify", "semantic": "global", "detailed":
      "weatherVerify"}, ...}, ...}
  images/n161313.jpg

Source of the layout: cs.stanford.edu/people/dorarad/gqa (questions1.2.zip and
its eval.py); haotian-liu/LLaVA: scripts/v1_5/eval/gqa.sh for the split.
train_balanced_questions.json, where it is, makes the question prior.
"""

from align_jax.data.tables import Row, json_rows
from align_jax.evals.readers.benchmark import SHORT, Benchmark


class Gqa(Benchmark):
  """An item's type is the structural one."""
  name, scorer, max_new_tokens = "gqa", "gqa", 8

  def read(self) -> None:
    for row in json_rows(self.folder / "testdev_balanced_questions.json"):
      kinds = Row(row.get("types", dict), f"{row.origin}, types")
      image = self.path(row, "images", row.text("imageId") + ".jpg")
      self.add(row, row.key, row.text("question") + SHORT,
               row.text("answer"), [image], kind=kinds.text("structural"))
    train = self.folder / "train_balanced_questions.json"
    if train.is_file():
      self.training = [(row.text("question") + SHORT, row.text("answer"))
                       for row in json_rows(train)]
