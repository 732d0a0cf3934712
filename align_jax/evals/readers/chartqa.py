"""ChartQA as its repository has it.

  test/test_human.json, test/test_augmented.json:
    [{"imgname": "41699051005347.png", "query": "...", "label": "14"}, ...]
  test/png/41699051005347.png

Source of the layout: vis-nlp/ChartQA, "ChartQA Dataset/" and its README. The
folder is that of the data set. `train/` makes the question prior.
"""

from align_jax.data.tables import json_rows
from align_jax.evals.readers.benchmark import SHORT, Benchmark


class ChartQa(Benchmark):
  """The test split, human and augmented; scored by relaxed accuracy."""
  name, scorer = "chartqa", "relaxed"

  def read(self) -> None:
    for kind in ("human", "augmented"):
      path = self.folder / "test" / f"test_{kind}.json"
      for number, row in enumerate(json_rows(path)):
        image = self.path(row, "test/png", row.text("imgname"))
        self.add(row, f"{kind}/{number}", row.text("query") + SHORT,
                 row.text("label"), [image], kind=kind)
      train = self.folder / "train" / f"train_{kind}.json"
      if train.is_file():
        self.training = [*self.training, *(
            (row.text("query") + SHORT, row.text("label"))
            for row in json_rows(train))]
