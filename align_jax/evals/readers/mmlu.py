"""MMLU, text alone: what a language model keeps of what it knew.

  data/test/abstract_algebra_test.csv, data/dev/abstract_algebra_dev.csv,
  without a header: question, A, B, C, D, answer

Source of the layout, and of the prompt with five solved questions:
hendrycks/test: evaluate.py (its two spaces before the subject are kept). The
authors compare the next token's probability of " A" to " D"; here the letter
is picked by the likelihood of the answer as training writes it, the end of
turn among it, and the prompt is one user turn.
"""

from align_jax.data.tables import Row, table_rows
from align_jax.errors import InputError
from align_jax.evals.readers.benchmark import Benchmark, options_text

COLUMNS = ("question", "A", "B", "C", "D", "answer")


class Mmlu(Benchmark):
  """All subjects of the folder; an item's type is its subject.

  Attributes:
    shots: solved questions before each one, of the dev split.
  """
  name, scorer, scoring = "mmlu", "letter", "likelihood"
  answers = ("A", "B", "C", "D")

  def __init__(self, folder: str, shots: int = 5):
    if shots < 0:
      raise InputError(f"shots {shots} is negative")
    self.shots = shots
    super().__init__(folder)

  def read(self) -> None:
    for path in sorted((self.folder / "test").glob("*_test.csv")):
      subject = path.name.removesuffix("_test.csv")
      dev = self.folder / "dev" / f"{subject}_dev.csv"
      solved = list(table_rows(dev, COLUMNS))[:self.shots]
      if len(solved) < self.shots:
        raise InputError(f"{dev}: {len(solved)} questions for "
                         f"{self.shots} shots")
      lead = ("The following are multiple choice questions (with answers) "
              f"about  {subject.replace('_', ' ')}.\n\n") + "".join(
                  f"{_ask(row)} {self._right(row)}\n\n" for row in solved)
      for number, row in enumerate(table_rows(path, COLUMNS)):
        self.add(row, f"{subject}/{number}", lead + _ask(row),
                 self._right(row), kind=subject,
                 options=tuple(row.get(c, str) for c in "ABCD"))

  def _right(self, row: Row) -> str:
    return row.one_of("answer", self.answers)


def _ask(row: Row) -> str:
  options = [row.get(letter, str) for letter in "ABCD"]
  return f"{row.text('question')}\n{options_text(options)}\nAnswer:"
