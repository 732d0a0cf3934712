"""MMVP, pairs of images that CLIP takes for the same.

  Questions.csv: Index,Question,Options,Correct Answer
      1,Are the butterfly's wings closer to being open or closed?,
      (a) Open (b) Closed,(a)
  MMVP Images/1.jpg ... 300.jpg

Source of the layout: MMVP/MMVP on the Hugging Face hub as tsb0601/MMVP:
scripts/evaluate_mllm.py reads it (which spells the folder "MMVP Imgaes").
Lines 2n - 1 and 2n are a pair. The options are shown with A and B, for the
letter to be read back; the authors let a language model grade free answers.
"""

import re

from align_jax.data.tables import table_rows
from align_jax.evals.readers.benchmark import (
    LETTER,
    LETTERS,
    Benchmark,
    options_text,
)

_OPTION = re.compile(r"\(([a-z])\)")
FOLDERS = ("MMVP Images", "MMVP Imgaes")


class Mmvp(Benchmark):
  """A pair is right if both are."""
  name, scorer, max_new_tokens = "mmvp", "pairs", 16
  answers = ("A", "B")

  def read(self) -> None:
    home = next((f for f in FOLDERS if (self.folder / f).is_dir()),
                FOLDERS[0])
    for row in table_rows(self.folder / "Questions.csv"):
      index = row.text("Index")
      if not index.isdecimal() or int(index) < 1:
        raise row.fault(f"field 'Index' is {index!r}, not a number from 1")
      parts = _OPTION.split(row.text("Options"))
      options = tuple(text.strip() for text in parts[2::2])
      if parts[1::2] != ["a", "b"] or not all(options):
        raise row.fault(f"field 'Options' is {row.text('Options')!r}, not "
                        "(a) ... (b) ...")
      right = row.one_of("Correct Answer", ("(a)", "(b)"))
      self.add(row, index,
               f"{row.text('Question')}\n{options_text(options)}{LETTER}",
               LETTERS["ab".index(right[1])],
               [self.path(row, home, f"{index}.jpg")], options=options,
               facts={"group": str((int(index) - 1) // 2), "size": 2})
