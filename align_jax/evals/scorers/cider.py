"""CIDEr-D (arXiv 1411.5726), as pycocoevalcap 1.2 computes it.

  g(w)   = tf(w) * (log M - log max(1, df(w)))       n-grams of 1 to 4 words
  sim_n  = sum_w min(g_hyp, g_ref) g_ref / (|g_hyp| |g_ref|)
           * exp(-(l_hyp - l_ref)^2 / (2 * 6^2))
  score  = 10 * mean over n of the mean over references of sim_n

M counts samples, df those whose references have the n-gram, l the bigrams
(cider/cider_scorer.py). With one sample alone all weights are 0.
"""

import math
from collections import Counter
from collections.abc import Sequence

from align_jax.evals.scorers.bleu import ORDERS, ngrams

SIGMA = 6.0


def cider(predictions: Sequence[str],
          references: Sequence[Sequence[str]]) -> list[float]:
  """A score for each sample, 0 to 10; the corpus has their mean."""
  seen = [[ngrams(truth.split()) for truth in truths]
          for truths in references]
  holding = Counter(gram for truths in seen
                    for gram in set().union(*truths))
  total = math.log(len(references)) if references else 0.0

  def weigh(counts: Counter) -> tuple[list[dict], list[float], int]:
    """Weights by length of n-gram, their norms, and the bigrams."""
    weights: list[dict] = [{} for _ in range(ORDERS)]
    for gram, count in counts.items():
      weights[len(gram) - 1][gram] = count * (
          total - math.log(max(1, holding[gram])))
    norms = [math.sqrt(sum(w * w for w in part.values()))
             for part in weights]
    bigrams = sum(n for gram, n in counts.items() if len(gram) == 2)
    return weights, norms, bigrams

  out = []
  for prediction, truths in zip(predictions, seen, strict=True):
    said, said_norms, said_length = weigh(ngrams(prediction.split()))
    summed = 0.0
    for truth in truths:
      true, true_norms, true_length = weigh(truth)
      gap = math.exp(-((said_length - true_length) ** 2) / (2 * SIGMA ** 2))
      for n in range(ORDERS):
        like = sum(min(w, true[n].get(gram, 0.0)) * true[n].get(gram, 0.0)
                   for gram, w in said[n].items())
        scale = said_norms[n] * true_norms[n]
        summed += gap * (like / scale if scale else like)
    out.append(10 * summed / ORDERS / len(truths))
  return out
