"""MM-Vet, without its judge.

  mm-vet.json: {"v1_0": {"imagename": "v1_0.png", "question": "...",
      "answer": "x=-1<AND>x=-5", "imagesource": "...",
      "capability": ["ocr", "math"]}, ...}
  images/v1_0.png

Source of the layout: yuweihao/MM-Vet: mm-vet_evaluator.py and
inference/utils.py. Its score is GPT-4's opinion and is not computed here, see
scorers/judged.py; the predictions of the per-question file are what its
grader takes, {"v1_0": "the answer", ...}.
"""

from align_jax.data.tables import json_rows
from align_jax.evals.readers.benchmark import Benchmark


class MmVet(Benchmark):
  """An item's type is its capabilities, joined by "+"."""
  name, scorer, max_new_tokens = "mmvet", "mmvet_unjudged", 256

  def read(self) -> None:
    for row in json_rows(self.folder / "mm-vet.json"):
      image = self.path(row, "images", row.text("imagename"))
      self.add(row, row.key, row.text("question"), row.text("answer"),
               [image], kind="+".join(sorted(row.texts("capability"))))
