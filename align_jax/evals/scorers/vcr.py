"""Visual caption restoration: covered words (arXiv 2406.06462).

For each covered phrase, the prediction's stretch of as many tokens that is
most like it is found; it is right if it is the phrase, token by token.
Source: tianyu-z/VCR: src/evaluation/evaluation_metrics.py (find_best_match)
and lmms-eval: lmms_eval/tasks/vcr_wiki/utils.py. Both tokenise with spaCy's
en_core_web_sm; here a token is a run of letters and digits or a single mark,
with n't, 's and the like set apart as spaCy does. Phrases and predictions are
cut alike, so that an exact match seldom depends on it.

`item.answers` are the covered phrases of the image, in order.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from align_jax.evals.scorers.protocol import Scorer, mean
from align_jax.evals.tasks import Item

_TOKEN = re.compile(
    r"\w+(?=n['’]t\b)|n['’]t\b|['’](?:s|re|ve|ll|d|m)\b|\w+|[^\w\s]")
_REFUSALS = ("I can't", "I cannot")


def tokens(text: str) -> list[str]:
  """Words and marks.

  >>> tokens("It wasn't Llanengan's.")
  ['It', 'was', "n't", 'Llanengan', "'s", '.']
  """
  return _TOKEN.findall(text)


def refuses(text: str) -> bool:
  """Whether this is no try at an answer."""
  return any(r in text for r in _REFUSALS) or "sorry" in text.lower()


def best_match(phrase: str, text: str) -> list[str]:
  """The stretch of `text` most like the phrase; [] if none shares a token."""
  said, wanted = tokens(text), tokens(phrase)
  best, found = 0.0, []
  for at in range(len(said) - len(wanted) + 1):
    stretch = said[at:at + len(wanted)]
    if set(stretch).isdisjoint(wanted):
      continue
    like = SequenceMatcher(None, " ".join(stretch), phrase).ratio()
    if like > best:
      best, found = like, stretch
  return found


class Vcr(Scorer):
  """Exact match over all phrases of all images, and the Jaccard index."""
  protocol = ("VCR exact match over covered phrases: the most similar stretch "
              "of as many tokens equals the phrase; refusals are wrong; "
              "tokens by a regular expression instead of spaCy")
  headline, sampled = "exact_match", False

  def one(self, prediction: str, item: Item) -> float:
    return mean([exact for exact, _ in _phrases(prediction, item)])

  def total(self, predictions: Sequence[str],
            items: Sequence[Item]) -> dict[str, float]:
    exact, jaccard = zip(*(pair for p, i in zip(
        predictions, items, strict=True) for pair in _phrases(p, i)))
    return {"exact_match": mean(exact), "jaccard": mean(jaccard)}


def _phrases(prediction: str, item: Item) -> list[tuple[float, float]]:
  out = []
  for phrase in item.answers:
    found = [] if refuses(prediction) else best_match(phrase, prediction)
    wanted = tokens(phrase)
    both = len(set(found) & set(wanted))
    out.append((float(found == wanted),
                both / len(set(found) | set(wanted)) if found else 0.0))
  return out
