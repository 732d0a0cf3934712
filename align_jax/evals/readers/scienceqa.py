"""ScienceQA's questions with an image (SQA-IMG), test split.

  problems.json: {"4": {"question": "...", "choices": ["a", "b"], "answer": 0,
      "hint": "", "image": "image.png" or null, "subject": "natural science",
      "topic": ..., "lecture": ..., "solution": ..., "split": "test"}, ...}
  pid_splits.json: {"test": ["4", ...], "train": [...], ...}
  images/test/4/image.png

Source of the layout: lupantech/ScienceQA: README.md, tools/download.sh and
models/base_prompt.py. The train problems make the question prior.
"""

from align_jax.data.tables import Row, json_rows, json_value
from align_jax.errors import InputError
from align_jax.evals.readers.benchmark import (
    LETTER,
    LETTERS,
    Benchmark,
    options_text,
)


class ScienceQaImg(Benchmark):
  """An item's type is its subject."""
  name, scorer, max_new_tokens = "scienceqa_img", "leading", 8
  answers = tuple(LETTERS[:5])

  def read(self) -> None:
    problems = {r.key: r for r in json_rows(self.folder / "problems.json")}
    splits = self.folder / "pid_splits.json"
    for key in json_value(splits, "test"):
      if key not in problems:
        raise InputError(f"{splits}: problems.json has no {key!r}")
      row = problems[key]
      if row.get("image", str, type(None)) is None:
        continue  # the other half of ScienceQA
      options = row.texts("choices")
      image = self.path(row, "images/test", key, row.text("image"))
      self.add(row, key, self._ask(row, options), self._answer(row, options),
               [image], kind=row.text("subject"), options=options)
    self.training = [
        (self._ask(r, r.texts("choices")), self._answer(r, r.texts("choices")))
        for r in problems.values()
        if r.text("split") == "train" and r.get("image", str, type(None))]

  def _ask(self, row: Row, options: tuple[str, ...]) -> str:
    hint = row.get("hint", str).strip()
    return ((f"Context: {hint}\n" if hint else "")
            + f"{row.text('question')}\n{options_text(options)}{LETTER}")

  def _answer(self, row: Row, options: tuple[str, ...]) -> str:
    number = row.get("answer", int)
    if not 0 <= number < len(options):
      raise row.fault(f"field 'answer' is {number}, and there are "
                      f"{len(options)} choices")
    return LETTERS[number]
