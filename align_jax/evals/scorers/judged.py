"""Benchmarks whose score is the opinion of a hosted language model.

MM-Vet (yuweihao/MM-Vet: mm-vet_evaluator.py, GPT-4) and CapsBench
(playgroundai/CapsBench on the Hugging Face hub, Claude 3.5 Sonnet as judge)
cannot be scored without their judge, and no number of ours may stand in for
theirs. What is reported says so: whether a reference phrase is held, under a
name of its own. The per-question file of an evaluation has what the judge
would be given.
"""

from align_jax.evals.scorers.protocol import Scorer
from align_jax.evals.tasks import Item


class MmVet(Scorer):
  """Whether what a grader would look for is in the answer.

  MM-Vet writes alternatives with <OR> and what must all be there with <AND>.
  """
  protocol = ("NOT MM-Vet's score, which needs its GPT-4 judge: the share of "
              "answers that hold one <OR> alternative with all its <AND> "
              "parts, lower case")
  headline = "phrases_held"

  def one(self, prediction: str, item: Item) -> float:
    said = prediction.lower()
    return any(
        all(part.strip().lower() in said for part in way.split("<AND>"))
        for way in item.answer.split("<OR>"))


class CapsBench(Scorer):
  """The share of the judge's questions whose key words a caption has."""
  protocol = ("NOT CapsBench's score, which needs its judge: the caption is "
              "kept, and counted is only whether it says anything")
  headline = "captions_given"

  def one(self, prediction: str, item: Item) -> float:
    return bool(prediction.strip())
