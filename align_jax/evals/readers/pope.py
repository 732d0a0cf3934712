"""POPE over COCO, three ways of choosing absent objects.

  coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json,
  a record a line: {"question_id": 1, "image":
  "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in the
  image?", "label": "yes"}
  val2014/COCO_val2014_000000310196.jpg

Source of the layout: AoiDragon/POPE: output/coco and evaluate.py;
haotian-liu/LLaVA: llava/eval/eval_pope.py for the folder of images.
"""

from align_jax.data.tables import json_rows
from align_jax.evals.readers.benchmark import SHORT, Benchmark

KINDS = ("random", "popular", "adversarial")


class Pope(Benchmark):
  """All three; an item's type says which."""
  name, scorer, max_new_tokens = "pope", "pope", 8
  answers = ("yes", "no")

  def read(self) -> None:
    for kind in KINDS:
      for row in json_rows(self.folder / f"coco_pope_{kind}.json"):
        image = self.path(row, "val2014", row.text("image"))
        self.add(row, f"{kind}/{row.text('question_id')}",
                 row.text("text") + SHORT, row.one_of("label", self.answers),
                 [image], kind=kind)
