"""MMBench's TSV files, asked in a circle.

  index  question  hint  A  B  C  D  answer  category  image  source
  l2-category  comment  split            (tab separated, a header line)

`image` is a JPEG as base64, or the index of the line that has it; a question
with three options leaves D empty. Source of the layout:
open-compass/MMBench, MMBench_DEV_EN.tsv, and VLMEvalKit:
vlmeval/dataset/image_mcq.py and utils/multiple_choice.py: lines whose index
is equal modulo 1,000,000 are one question with its options rotated. Files
without such lines are rotated here as haotian-liu/LLaVA:
llava/eval/model_vqa_mmbench.py does with --all-rounds.
"""

import base64
import binascii
from functools import partial

from align_jax.data.tables import Row, table_rows
from align_jax.errors import InputError
from align_jax.evals.readers.benchmark import (
    LETTER,
    LETTERS,
    Benchmark,
    options_text,
)

TURN = 1_000_000


class MmBench(Benchmark):
  """The dev split, whose answers are published.

  Attributes:
    file: below the folder.
    circular: ask every rotation; else the questions as they stand, scored as
      plain multiple choice.
  """
  name, scorer, max_new_tokens = "mmbench", "circular", 16
  answers = ("A", "B", "C", "D")

  def __init__(self, folder: str, file: str = "MMBench_DEV_EN.tsv",
               circular: bool = True):
    self.file, self.circular = file, circular
    if not circular:
      self.scorer = "infer"
    super().__init__(folder)

  def read(self) -> None:
    rows = list(table_rows(self.folder / self.file, delimiter="\t"))
    lines = {row.text("index"): row for row in rows}
    turned = any(int(index) >= TURN for index in lines)
    for index, row in lines.items():
      group, rotation = int(index) % TURN, int(index) // TURN
      options = _options(row)
      right = row.one_of("answer", LETTERS[:len(options)])
      if rotation and not self.circular:
        continue
      turns = len(options) if self.circular and not turned else 1
      for turn in range(turns):
        self._add(row, lines, group, rotation + turn,
                  options[turn:] + options[:turn],
                  LETTERS[(LETTERS.index(right) - turn) % len(options)])

  def _add(self, row: Row, lines: dict[str, Row], group: int, rotation: int,
           options: tuple[str, ...], right: str) -> None:
    hint = row.get("hint", str).strip()
    asked = (hint + "\n" if hint and hint != "nan" else "") + (
        f"{row.text('question')}\n{options_text(options)}{LETTER}")
    self.add(row, f"{group}/{rotation}", asked, right,
             [partial(_image, row, lines)], name=group,
             kind=row.text("category"), options=options,
             facts={"group": str(group), "rotation": rotation,
                   "size": len(options)})


def _options(row: Row) -> tuple[str, ...]:
  """The options that are there, without gaps."""
  found = [row.get(letter, str).strip() for letter in "ABCD"
           if letter in row.fields]
  kept = tuple(option for option in found if option and option != "nan")
  if len(kept) < 2 or found[:len(kept)] != list(kept):
    raise row.fault(f"the options are {found}")
  return kept


def _image(row: Row, lines: dict[str, Row]) -> bytes:
  text = row.text("image")
  if text in lines:
    text = lines[text].text("image")
  try:
    return base64.b64decode(text, validate=True)
  except (binascii.Error, ValueError) as error:
    raise InputError(f"{row.origin}: field 'image' is neither base64 nor the "
                     f"index of a line: {text[:40]!r}") from error
