"""TableVQA-Bench's three rules (arXiv 2404.19205).

  vwtq, vwtq_syn   denotation, see denotation.py
  vtabfact         the answer holds "true" or "false", see tabfact.py
  fintabnetqa      equal numbers, units read; with or without the unit

Source: naver-ai/tablevqabench, as it stands in VLMEvalKit:
vlmeval/dataset/utils/tablevqabench.py. An item's `type` is its subset.
"""

import re

from align_jax.evals.scorers.denotation import (
    normalise,
    same_denotation,
    split,
)
from align_jax.evals.scorers.protocol import Scorer, mean
from align_jax.evals.scorers.tabfact import TabFactContains
from align_jax.evals.tasks import Item

SUBSETS = ("vwtq", "vwtq_syn", "vtabfact", "fintabnetqa")
_UNITS = re.compile(
    r"\b(dollar|gallons|square feet|shares|mbtu|mbpd|mbbls|mmbtu|unit|gwh"
    r"|year|mmcf|mile|mboe)s?\b", re.IGNORECASE)
# In this order: a number word's own space goes with it where there is one.
_SCALES = tuple((re.compile(pattern), power) for pattern, power in (
    (r" \bthousand\b", "e3"), (r" \bmillion\b", "e6"),
    (r" \bbillion\b", "e9"), (r"\bthousand\b", "e3"),
    (r"\bmillion\b", "e6"), (r"\bbillion\b", "e9"), (r" ?%", "e-2")))


def amounts(text: str) -> tuple[float | str, float | str]:
  """An amount with its scale, and without.

  >>> amounts("$3,852 million")
  (3852000000.0, 3852.0)
  >>> amounts("October 31")
  ('october 31', 'october 31')
  """
  text = _UNITS.sub("", re.sub(r"[$(),]", "", normalise(text)))
  bare = text
  for pattern, power in _SCALES:
    text, bare = pattern.sub(power, text), pattern.sub("", bare)
  try:
    return float(text), float(bare)
  except ValueError:
    return text, bare


class TableVqa(Scorer):
  """`accuracy` is the mean over questions; each subset beside it."""
  protocol = ("TableVQA-Bench: denotation (vwtq, vwtq_syn), true/false held "
              "(vtabfact), amounts equal with or without their unit "
              "(fintabnetqa, \"relieved\"), \"Answer: \" at the start left out "
              "(VLMEvalKit); the mean over questions is ours")

  def one(self, prediction: str, item: Item) -> float:
    prediction = prediction.removeprefix("Answer: ")
    if item.type == "vtabfact":
      return TabFactContains().one(prediction, item)
    if item.type == "fintabnetqa":
      said, true = amounts(prediction), amounts(item.answer)
      return any(s == t for s in said for t in true)
    return same_denotation(split(prediction), split(item.answer))

  def total(self, predictions: list[str],
            items: list[Item]) -> dict[str, float]:
    scores = self.scores(predictions, items)
    found = {kind: mean([s for s, i in zip(scores, items) if i.type == kind])
             for kind in SUBSETS if any(i.type == kind for i in items)}
    exact = [amounts(p.removeprefix("Answer: "))[0] == amounts(i.answer)[0]
             for p, i in zip(predictions, items) if i.type == "fintabnetqa"]
    if exact:
      found["fintabnetqa_exact"] = mean(exact)
    return {"accuracy": mean(scores)} | found
