"""Denotation accuracy of WikiTableQuestions (arXiv 1508.00305).

An answer is a set of values: numbers, dates (year-month-day, "xx" for what
is open) or texts. It is right if both sets are equally large and every true
value has a match. Source: ppasupat/WikiTableQuestions: evaluator.py, of which
due_evaluator/scorers/wtq_scorer.py and VLMEvalKit's
vlmeval/dataset/utils/tablevqabench.py are copies. The official script also
takes CoreNLP's reading of the truth; as in both copies, none is taken here.

Values in a text are separated by "|", as in the data set's TSV files; "||",
which VLMEvalKit's prompt asks for, is the same.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from align_jax.evals.scorers.protocol import Scorer
from align_jax.evals.tasks import Item

CLOSE = 1e-6
_QUOTES = str.maketrans(
    dict.fromkeys("‘’´`", "'") | dict.fromkeys("“”", '"')
    | dict.fromkeys("‐‑‒–—−", "-"))
_CITATIONS = re.compile(r"((?<!^)\[[^\]]*\]|\[\d+\]|[•♦†‡*#+])*$")
_ASIDE = re.compile(r"(?<!^)( \([^)]*\))*$")
_QUOTED = re.compile(r'^"([^"]*)"$')


class Value(NamedTuple):
  """kind: "number", "date" or "text"; payload: what it is equal by."""
  kind: str
  payload: float | tuple[int, int, int] | str
  text: str

  def matches(self, other: "Value") -> bool:
    if self.text == other.text:
      return True
    if self.kind != other.kind or self.kind == "text":
      return False
    if self.kind == "number":
      return abs(self.payload - other.payload) < CLOSE
    return self.payload == other.payload


def normalise(text: str) -> str:
  """Without diacritics, citations, asides, outer quotes and a last period.

  >>> normalise("Peña (Spain)[3]*.")
  'pena (spain)[3]*'
  >>> normalise('"Peña" (Spain)[3]')
  'pena'
  """
  text = "".join(c for c in unicodedata.normalize("NFKD", text)
                 if unicodedata.category(c) != "Mn").translate(_QUOTES)
  before = None
  while text != before:
    before = text
    text = _CITATIONS.sub("", text.strip())
    text = _ASIDE.sub("", text.strip())
    text = _QUOTED.sub(r"\1", text.strip())
  text = text.removesuffix(".")
  return re.sub(r"\s+", " ", text).lower().strip()


def value(text: str) -> Value:
  """A text as a number, a date or a text."""
  number = _number(text)
  date = None if number is not None else _date(text)
  if date is not None and date[1:] == (-1, -1):
    number = float(date[0])
  if number is not None:
    whole = abs(number - round(number)) < CLOSE
    return Value("number", round(number) if whole else number,
                 normalise(text))
  if date is not None:
    return Value("date", date, normalise(text))
  return Value("text", normalise(text), normalise(text))


def _number(text: str) -> float | None:
  try:
    number = float(text)
  except ValueError:
    return None
  return number if math.isfinite(number) else None


def _date(text: str) -> tuple[int, int, int] | None:
  parts = text.lower().split("-")
  if len(parts) != 3:
    return None
  try:
    year = -1 if parts[0] in ("xx", "xxxx") else int(parts[0])
    month, day = (-1 if p == "xx" else int(p) for p in parts[1:])
  except ValueError:
    return None
  good = ((year, month, day) != (-1, -1, -1)
          and (month == -1 or 1 <= month <= 12)
          and (day == -1 or 1 <= day <= 31))
  return (year, month, day) if good else None


def values(texts: Sequence[str]) -> list[Value]:
  """Each different value once."""
  return list({(v.kind, v.payload): v for v in map(value, texts)}.values())


def split(text: str) -> list[str]:
  r"""A text's values; "\n", "\p" and "\\" are the TSV files' escapes."""
  return [part.replace(r"\n", "\n").replace(r"\p", "|").replace(r"\\", "\\")
          for part in text.replace("||", "|").split("|")]


def same_denotation(prediction: Sequence[str], truth: Sequence[str]) -> bool:
  """Whether two lists of texts denote the same."""
  said, true = values(prediction), values(truth)
  return len(said) == len(true) and all(
      any(t.matches(s) for s in said) for t in true)


class Denotation(Scorer):
  """`item.answers` are the values of the one true answer."""
  protocol = ("denotation accuracy; numbers within 1e-6, dates by parts, "
              "other texts normalised; values separated by | "
              "(WikiTableQuestions evaluator.py without CoreNLP values)")

  def one(self, prediction: str, item: Item) -> float:
    return same_denotation(split(prediction), item.answers)


class DenotationDue(Scorer):
  """mPLUG-DocOwl's: the whole prediction is one value."""
  protocol = ("denotation accuracy; the whole prediction is one value, so "
              "answers of several values are never right (due_evaluator as "
              "mPLUG-DocOwl runs it)")

  def one(self, prediction: str, item: Item) -> float:
    return same_denotation([prediction.strip().replace("\n", "").upper()],
                           [a.upper() for a in item.answers])
