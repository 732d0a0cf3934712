"""Relaxed accuracy of ChartQA (arXiv 2203.10244, section 5.1).

A number is right within 5 % of the truth, other answers if equal in lower
case. "34%" is read as 0.34. Source of the form all use:
google-research/pix2struct: pix2struct/metrics.py, relaxed_correctness; a
truth of zero is compared as text there. VLMEvalKit strips the prediction
first (vlmeval/dataset/utils/vqa_eval.py: process_line), lmms-eval does not
(lmms_eval/tasks/chartqa/utils.py).
"""

from align_jax.evals.scorers.protocol import Scorer, mean
from align_jax.evals.tasks import Item

TOLERANCE = 0.05


def number(text: str) -> float | None:
  """A number, or a percentage as a share; None for other texts."""
  try:
    if text.endswith("%"):
      return float(text.rstrip("%")) / 100
    return float(text)
  except ValueError:
    return None


def relaxed(prediction: str, truth: str) -> bool:
  """Whether the prediction is right within the tolerance."""
  said, true = number(prediction), number(truth)
  if said is not None and true:
    return abs(said - true) / abs(true) <= TOLERANCE
  return prediction.lower() == truth.lower()


class Relaxed(Scorer):
  """lmms-eval's form: the prediction as it was said.

  `total` adds the accuracy of each type of question where there are several:
  ChartQA's human and augmented halves.
  """
  protocol = ("relaxed accuracy: numbers within 5 %, percentages as shares, "
              "other answers equal in lower case; nothing stripped "
              "(pix2struct, lmms-eval)")
  headline = "relaxed_accuracy"

  def one(self, prediction: str, item: Item) -> float:
    return any(relaxed(prediction, truth) for truth in item.answers)

  def total(self, predictions: list[str],
            items: list[Item]) -> dict[str, float]:
    scores = self.scores(predictions, items)
    kinds = sorted({i.type for i in items})
    parts = {f"{self.headline}_{kind}": mean(
        [s for s, i in zip(scores, items) if i.type == kind])
             for kind in kinds} if len(kinds) > 1 else {}
    return {self.headline: mean(scores)} | parts


class RelaxedVLMEvalKit(Relaxed):
  """VLMEvalKit's form: the prediction stripped of white space."""
  protocol = ("relaxed accuracy: numbers within 5 %, percentages as shares, "
              "other answers equal in lower case; white space stripped "
              "(VLMEvalKit)")

  def one(self, prediction: str, item: Item) -> float:
    return super().one(prediction.strip(), item)
