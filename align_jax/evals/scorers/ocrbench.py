"""OCRBench: 1,000 questions, the answer held in what was said.

Source: Yuliang-Liu/MultimodalOCR: OCRBench/example.py, and lmms-eval:
lmms_eval/tasks/ocrbench/utils.py. For handwritten formulas (HME100k) spaces
are dropped and letter case counts; lmms-eval lower-cases the prediction but
not the truth there, so that truths with capitals never match: kept as a form
of its own.

Facts of an item: "dataset", "HME100k" for the formulas. Its `type` is the
question type. `points` is what the authors report, of 1,000.
"""

from collections.abc import Sequence

from align_jax.evals.scorers.protocol import Scorer, mean
from align_jax.evals.tasks import Item

FORMULAS = "HME100k"


class OcrBench(Scorer):
  """The authors' form."""
  protocol = ("OCRBench: an accepted answer is held by the prediction, lower "
              "case; formulas without spaces, in their own letter case")
  lower_formulas = False

  def one(self, prediction: str, item: Item) -> float:
    if item.facts.get("dataset") == FORMULAS:
      said = prediction.lower() if self.lower_formulas else prediction
      plain = lambda text: (
          text.strip().replace("\n", " ").replace(" ", ""))
      return any(plain(a) in plain(said) for a in item.answers)
    plain = lambda text: text.lower().strip().replace("\n", " ")
    return any(plain(a) in plain(prediction) for a in item.answers)

  def total(self, predictions: Sequence[str],
            items: Sequence[Item]) -> dict[str, float]:
    scores = self.scores(predictions, items)
    return {"accuracy": mean(scores), "points": int(sum(scores))}


class OcrBenchLmmsEval(OcrBench):
  """lmms-eval's form."""
  protocol = ("OCRBench: an accepted answer is held by the prediction, lower "
              "case; formulas without spaces, the prediction alone in lower "
              "case (lmms-eval)")
  lower_formulas = True
