"""VCR-wiki, covered words in pictures, on the Hugging Face hub.

  data/test-*.parquet, columns question_id, image, stacked_image,
  only_it_image, only_it_image_small, caption, crossed_text

Source of the layout: vcr-org/VCR-wiki-en-easy-test (and -hard) as
tianyu-z/VCR: src/evaluation reads it and lmms-eval:
lmms_eval/tasks/vcr_wiki/utils.py: `stacked_image` is the picture above the
text with covered words, `crossed_text` the list of what is covered.
"""

from functools import partial

from align_jax.data.parquet import Parquet, find
from align_jax.data.vcr_wiki import ASK
from align_jax.evals.readers.benchmark import Benchmark


class Vcr(Benchmark):
  """One difficulty: the folder of the easy or of the hard set."""
  name, scorer, max_new_tokens = "vcr", "vcr", 120

  def read(self) -> None:
    table = Parquet(find(self.folder, "**/test-*.parquet"))
    for number, row in enumerate(
        table.rows(["question_id", "crossed_text"])):
      answers = row.texts("crossed_text")
      self.add(row, row.text("question_id"), ASK, ", ".join(answers),
               [partial(table.image, number, "stacked_image")], name=number,
               answers=answers)
