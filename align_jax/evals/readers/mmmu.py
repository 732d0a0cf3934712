"""MMMU on the Hugging Face hub, validation or dev.

  {Subject}/validation-00000-of-00001.parquet, columns id, question, options
  (a Python list as text), answer, image_1 ... image_7, question_type
  ("multiple-choice" or "open"), subfield, topic_difficulty, img_type

Source of the layout: MMMU/MMMU as MMMU-Benchmark/MMMU: mmmu/utils/data_utils.py
and lmms-eval: lmms_eval/tasks/mmmu/utils.py read it. "<image 1>" in question
or options stands for image_1; images stand there, one that is named twice is
shown twice.
"""

import ast
import re
from functools import partial

from align_jax.data.example import PLACEHOLDER
from align_jax.data.parquet import Parquet, find
from align_jax.data.tables import Row
from align_jax.errors import InputError
from align_jax.evals.readers.benchmark import (
    LETTER,
    LETTERS,
    SHORT,
    Benchmark,
    options_text,
)

_PLACE = re.compile(r"<image (\d)>")
COLUMNS = ["id", "question", "options", "answer", "question_type"]


class Mmmu(Benchmark):
  """All subjects below the folder.

  Attributes:
    split: "validation" or "dev"; test answers are not published.
  """
  name, scorer = "mmmu", "mmmu"

  def __init__(self, folder: str, split: str = "validation"):
    if split not in ("validation", "dev"):
      raise InputError(f"split {split!r} is not one of validation, dev")
    self.split = split
    super().__init__(folder)

  def read(self) -> None:
    for path in find(self.folder, f"**/{self.split}-*.parquet"):
      table = Parquet([path])
      for number, row in enumerate(table.rows(COLUMNS)):
        self._add(row, table, number, path.parent.name)

  def _add(self, row: Row, table: Parquet, number: int,
           subject: str) -> None:
    kind = row.one_of("question_type", ("multiple-choice", "open"))
    options = _list(row, "options") if kind == "multiple-choice" else ()
    asked = row.text("question")
    if options:
      asked += "\n" + options_text(options) + "\n" + LETTER
      answers = (row.one_of("answer", LETTERS[:len(options)]),)
    else:
      asked += "\n" + SHORT
      given = row.text("answer")
      answers = (_list(row, "answer") if given.startswith("[")
                 else (given,))
    places = [int(n) for n in _PLACE.findall(asked)]
    if not places:
      raise row.fault("the question names no image")
    images = [partial(self._image, table, number, f"image_{n}")
              for n in places]
    self.add(row, row.text("id"), _PLACE.sub(PLACEHOLDER, asked), answers[0],
             images, name=row.text("id"), kind=subject, answers=answers,
             options=options)

  @staticmethod
  def _image(table: Parquet, number: int, column: str) -> bytes:
    data = table.image(number, column)
    if data is None:
      raise InputError(f"{table.origin(number)}: {column} is empty and the "
                       "question names it")
    return data


def _list(row: Row, name: str) -> tuple[str, ...]:
  """A list that is written as Python text."""
  try:
    values = ast.literal_eval(row.text(name))
  except (ValueError, SyntaxError) as error:
    raise row.fault(f"field {name!r} is no list: {error}") from error
  if not isinstance(values, list) or not values:
    raise row.fault(f"field {name!r} is {values!r:.60}, not a list")
  return tuple(map(str, values))
