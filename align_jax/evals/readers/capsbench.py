"""CapsBench, without its judge: 200 images to be captioned in detail.

  data/train-00000-of-00001.parquet, columns image, questions (with their
  answers) and captions of other models

Source of the layout: playgroundai/CapsBench on the Hugging Face hub, as
alexfdom/capsbench reads its columns. Whether a caption answers the questions
is a language model's opinion and is not computed here, see
scorers/judged.py; an item's facts hold the questions as they are given.
"""

from functools import partial

from align_jax.data.parquet import Parquet, find
from align_jax.evals.readers.benchmark import Benchmark

ASK = "Describe the image in detail."


class CapsBench(Benchmark):
  """A caption an image."""
  name, scorer, max_new_tokens = "capsbench", "capsbench_unjudged", 512

  def read(self) -> None:
    table = Parquet(find(self.folder, "**/train-*.parquet"))
    for number, row in enumerate(table.rows(["questions"])):
      questions = row.get("questions", list, str, dict)
      if not questions:
        raise row.fault("field 'questions' is empty")
      self.add(row, number, ASK, "", [partial(table.image, number, "image")],
               name=number, facts={"questions": questions})
