"""SEED-Bench, its image questions (dimensions 1 to 9).

  SEED-Bench.json: {"questions": [{"answer": "A", "choice_a": "...", ...,
      "choice_d": "...", "data_id": "1454426_2591111986", "data_type":
      "image", "question": "...", "question_id": "101669",
      "question_type_id": 1}, ...], "question_type": {"Scene Understanding":
      1, ...}}
  SEED-Bench-image/1454426_2591111986

Source of the layout: AILab-CVC/SEED-Bench: eval.py, DATASET.md. The authors
pick the choice with the lowest loss of its text; LLaVA, lmms-eval and so most
papers ask for the letter, as here.
"""

import logging

from align_jax.data.tables import json_rows, json_value
from align_jax.errors import InputError
from align_jax.evals.readers.benchmark import LETTER, Benchmark, options_text

CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")


class SeedBench(Benchmark):
  """Attributes:
    left_out: questions about videos, which need frames that are not published
      with it; logged, never silent.
  """
  name, scorer, max_new_tokens = "seedbench", "letter", 8
  answers = ("A", "B", "C", "D")

  def read(self) -> None:
    path = self.folder / "SEED-Bench.json"
    kinds = json_value(path, "question_type")
    if not isinstance(kinds, dict):
      raise InputError(f"{path}: 'question_type' is no object")
    names = {number: name for name, number in kinds.items()}
    self.left_out = 0
    for row in json_rows(path, "questions"):
      if row.one_of("data_type", ("image", "video")) == "video":
        self.left_out += 1
        continue
      number = row.get("question_type_id", int)
      if number not in names:
        raise row.fault(f"field 'question_type_id' is {number}, which "
                        "'question_type' does not name")
      options = tuple(row.text(c) for c in CHOICES)
      self.add(row, row.text("question_id"),
               f"{row.text('question')}\n{options_text(options)}{LETTER}",
               row.one_of("answer", self.answers),
               [self.path(row, "SEED-Bench-image", row.text("data_id"))],
               kind=names[number], options=options)
    if self.left_out:
      logging.getLogger(__name__).warning(
          "seedbench: %d questions about videos are left out",
          self.left_out)
