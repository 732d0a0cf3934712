"""MMMU: choices and open answers parsed from free text.

Source: MMMU-Benchmark/MMMU: mmmu/utils/eval_utils.py, and lmms-eval's
variant (lmms_eval/tasks/mmmu/utils.py), which also takes "B" directly before
a space or a period. Where no option can be made out, both draw one at random;
here the draw is keyed by the item, so that a score is the same in every run.

An item without options is an open question, its `answers` all accepted.
"""

import random
import re
from collections.abc import Sequence

from align_jax.evals.scorers.choice import LETTERS
from align_jax.evals.scorers.protocol import Scorer
from align_jax.evals.tasks import Item

_STRIPPED = ",.!?;:'"
_TRIVIAL = {":", ",", ".", "!", "?", ";", "'"}
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ",
               "answer ", "result ")
_NUMBERS = tuple(map(re.compile, (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")))


def parse_choice(response: str, options: Sequence[str],
                 bare: Sequence[str] = (" {} ",), seed: str = "") -> str:
  """The letter that an answer picks.

  "(B)" counts first, then the letter in one of the forms `bare`, then, in
  answers of more than five words, the text of an option. The last one said
  wins; where there is none, a letter is drawn by `seed`.
  """
  for mark in _STRIPPED:
    response = response.strip(mark)
  response = f" {response} "
  known = LETTERS[:len(options)]
  found = [c for c in known if f"({c})" in response]
  place = lambda c: response.rfind(f"({c})")
  if not found:
    place = lambda c: response.rfind(f" {c} ")
    for form in bare:
      found = found or [c for c in known if form.format(c) in response]
  if not found and len(response.split()) > 5:
    texts = dict(zip(known, (o.lower() for o in options)))
    lower = response.lower()
    found = [c for c in known if texts[c] in lower]
    place = lambda c: lower.rfind(texts[c])
  if not found:
    return random.Random(f"mmmu/{seed}").choice(known)
  return max(found, key=lambda c: (place(c), -known.index(c)))


def normalise(text: str) -> list[str | float]:
  """A number rounded to two digits, or lower-case text.

  A single letter gets a space on either side, against trivial matches.
  """
  text = text.strip()
  try:
    return [round(float(text.replace(",", "")), 2)]
  except ValueError:
    text = text.lower()
  return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def parse_open(response: str) -> set[str | float]:
  """Texts and numbers that an answer may mean."""
  whole = response.strip().strip(".").lower()
  # Lower case has no capital behind a period: only line breaks cut.
  parts = re.split(r"\.\s(?=[A-Z])|\n", whole)
  keys = []
  for number, part in enumerate(parts):
    marks = _INDICATORS + (("=",) if number == len(parts) - 1 else ())
    tails = [part.split(mark)[-1].strip() for mark in marks if mark in part]
    shortest = _shortest(tails)
    if shortest and shortest not in _TRIVIAL:
      keys.append(shortest)
  keys = keys or [whole]
  said = keys + [n for key in keys for form in _NUMBERS
                 for n in form.findall(key)]
  return {value for text in said for value in normalise(text)}


def _shortest(tails: Sequence[str]) -> str:
  """The first of the shortest; an empty one gives way to what follows."""
  kept = ""
  for tail in tails:
    if not kept or len(tail) < len(kept):
      kept = tail
  return kept


def open_right(response: str, answers: Sequence[str]) -> bool:
  """Whether a true text is held by a said one, or a number is equal."""
  truths = [value for answer in answers for value in normalise(answer)]
  return any(
      any(isinstance(t, str) and t in said for t in truths)
      if isinstance(said, str) else said in truths
      for said in parse_open(response))


class Mmmu(Scorer):
  """The authors' own parser."""
  protocol = ("MMMU's eval_utils.py: (B), then B between spaces, then an "
              "option's text; open answers by texts and numbers held; "
              "where nothing is found a letter drawn by the item's id")
  bare: tuple[str, ...] = (" {} ",)

  def one(self, prediction: str, item: Item) -> float:
    if not item.options:
      return open_right(prediction, item.answers)
    return parse_choice(prediction, item.options, self.bare,
                        item.id) == item.answer


class MmmuLmmsEval(Mmmu):
  """lmms-eval's variant."""
  protocol = ("lmms-eval's MMMU parser: (B), then B before a space or a "
              "period, then an option's text; open answers by texts and "
              "numbers held; where nothing is found a letter drawn by the "
              "item's id")
  bare = ("{} ", "{}.")
