"""Average normalised Levenshtein similarity (arXiv 1905.13648, Eq. 1).

  s = max over answers of 1 - distance(answer, prediction) / length
  s counts as 0 below the threshold 0.5

The authors' script (infographicsvqa_eval.py of the RRC site, kept in
QwenLM/Qwen-VL: eval_mm/infographicsvqa_eval.py) joins white space before it
measures the distance, but divides by the longer of the texts as they were
given; lmms-eval (lmms_eval/api/metrics.py: anls) does the same. VLMEvalKit
(vlmeval/dataset/utils/vqa_eval.py: anls_compute) divides by the length of
what it compared. DUE (due_evaluator/scorers/anls_scorer.py) normalises
nothing but letter case, and a similarity of exactly one half counts as 0.
"""

from align_jax.evals.scorers.protocol import Scorer
from align_jax.evals.tasks import Item

THRESHOLD = 0.5


def levenshtein(a: str, b: str) -> int:
  """Insertions, deletions and substitutions from one text to the other."""
  if len(a) < len(b):
    a, b = b, a
  row = list(range(len(b) + 1))
  for i, left in enumerate(a, 1):
    corner, row[0] = row[0], i
    for j, right in enumerate(b, 1):
      corner, row[j] = row[j], min(
          row[j] + 1, row[j - 1] + 1, corner + (left != right))
  return row[-1]


def _plain(text: str) -> str:
  return " ".join(text.strip().lower().split())


class Anls(Scorer):
  """The authors' script, and lmms-eval's."""
  protocol = ("ANLS, threshold 0.5; lower case and single spaces before the "
              "distance, which is divided by the longer text as given "
              "(RRC script, lmms-eval)")
  headline = "anls"

  def length(self, prediction: str, truth: str) -> int:
    """What the distance is divided by."""
    return max(len(prediction), len(truth))

  def one(self, prediction: str, item: Item) -> float:
    best = 0.0
    for truth in item.answers:
      length = self.length(prediction, truth)
      away = levenshtein(_plain(truth), _plain(prediction))
      best = max(best, 1 - away / length if length else 1.0)
    return best if best >= THRESHOLD else 0.0


class AnlsVLMEvalKit(Anls):
  """VLMEvalKit's, with which AlignVLM was evaluated."""
  protocol = ("ANLS, threshold 0.5; lower case and single spaces before the "
              "distance and before the length (VLMEvalKit)")

  def length(self, prediction: str, truth: str) -> int:
    return max(len(_plain(prediction)), len(_plain(truth)))


class AnlsDue(Scorer):
  """The DUE benchmark's, as mPLUG-DocOwl runs it (letter case ignored)."""
  protocol = ("ANLS, similarity above 0.5; upper case alone (due_evaluator "
              "with ignore_case)")
  headline = "anls"

  def one(self, prediction: str, item: Item) -> float:
    best = 0.0
    for truth in item.answers:
      a, b = prediction.upper(), truth.upper()
      longest = max(len(a), len(b))
      best = max(best, 1 - levenshtein(a, b) / longest if longest else 1.0)
    return best if best > 1 - THRESHOLD else 0.0
