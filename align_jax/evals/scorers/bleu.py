"""BLEU-1 to BLEU-4 (Papineni et al., 2002), the corpus form of COCO.

Equal to pycocoevalcap 1.2, bleu/bleu_scorer.py with option "closest": clipped
n-gram counts of the whole corpus, brevity penalty by the closest reference of
each sample (of two as close, the shorter), and its two small constants.
"""

import math
from collections import Counter
from collections.abc import Sequence

TINY, SMALL = 1e-15, 1e-9
ORDERS = 4


def ngrams(words: Sequence[str], longest: int = ORDERS) -> Counter:
  """How often each run of 1 to `longest` words occurs."""
  return Counter(tuple(words[i:i + n]) for n in range(1, longest + 1)
                 for i in range(len(words) - n + 1))


def bleu(predictions: Sequence[str],
         references: Sequence[Sequence[str]]) -> tuple[float, ...]:
  """BLEU-1 to BLEU-4 of a corpus, 0 to 1; words are split at white space."""
  guessed, right = [0] * ORDERS, [0] * ORDERS
  said_length = true_length = 0
  for prediction, truths in zip(predictions, references, strict=True):
    words = prediction.split()
    ceiling: Counter = Counter()
    for truth in truths:
      ceiling |= ngrams(truth.split())
    for gram, count in (ngrams(words) & ceiling).items():
      right[len(gram) - 1] += count
    for n in range(ORDERS):
      guessed[n] += max(0, len(words) - n)
    said_length += len(words)
    true_length += min((len(t.split()) for t in truths),
                       key=lambda n: (abs(n - len(words)), n))
  out, product = [], 1.0
  for n in range(ORDERS):
    product *= (right[n] + TINY) / (guessed[n] + SMALL)
    out.append(product ** (1 / (n + 1)))
  ratio = (said_length + TINY) / (true_length + SMALL)
  penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
  return tuple(value * penalty for value in out)
