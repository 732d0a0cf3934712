"""TabFact: whether a statement about a table holds (arXiv 1909.02164).

Source: X-PLUG/mPLUG-DocOwl, DocOwl1.5/docowl_benchmark_evaluate.py
(ExactAccuracy over "true" and "false", a last period dropped); and
VLMEvalKit, vlmeval/dataset/utils/tablevqabench.py: evaluate_tabfact, which
looks for the word anywhere and gives an answer with both words to a person.
"""

from align_jax.evals.scorers.protocol import Scorer
from align_jax.evals.tasks import Item

NAMES = {"1": "true", "0": "false"}


def truth(answer: str) -> str:
  """"true" or "false" of either spelling, "1" and "0" among them."""
  answer = answer.strip().lower()
  return NAMES.get(answer, answer)


class TabFact(Scorer):
  """The answer must be the word and nothing else."""
  protocol = ("the answer is \"true\" or \"false\" after stripping, a last "
              "period and letter case aside (mPLUG-DocOwl)")

  def one(self, prediction: str, item: Item) -> float:
    said = prediction.replace("\n", "").strip().removesuffix(".").lower()
    return said == truth(item.answer)


class TabFactContains(Scorer):
  """The answer holds the right word and not the wrong one."""
  protocol = ("the answer holds \"true\" or \"false\", and not both; "
              "answers with both, which the authors read by hand, are wrong "
              "(TableVQA-Bench, VLMEvalKit)")

  def one(self, prediction: str, item: Item) -> float:
    said = [word for word in ("true", "false") if word in prediction.lower()]
    return said == [truth(item.answer)]
