"""POPE: is there an object in the image? (arXiv 2305.10355)

  accuracy, precision, recall and F1 of "yes", and the share of yes

`official` is AoiDragon/POPE: evaluate.py: in the first sentence, "No", "no"
or "not" as a word means no; all else means yes. lmms-eval
(lmms_eval/tasks/pope/utils.py) takes the whole answer in lower case as it is;
its yes_ratio counts the truths, ours what was said in both forms.
"""

from collections.abc import Sequence

from align_jax.evals.scorers.protocol import Scorer, mean
from align_jax.evals.tasks import Item


class Pope(Scorer):
  """The authors' script; AlignVLM and SEA report accuracy or F1 of it."""
  protocol = ("POPE: no if the first sentence has the word No, no or not, "
              "else yes (the authors' evaluate.py); yes is the positive class")

  def read(self, prediction: str) -> str:
    """"yes", "no" or, in other forms, anything."""
    words = prediction.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"

  def one(self, prediction: str, item: Item) -> float:
    return self.read(prediction) == item.answer.lower()

  def total(self, predictions: Sequence[str],
            items: Sequence[Item]) -> dict[str, float]:
    pairs = [(self.read(p), i.answer.lower())
             for p, i in zip(predictions, items, strict=True)]
    hits = pairs.count(("yes", "yes"))
    share = lambda n, of: n / of if of else 0.0
    precision = share(hits, hits + pairs.count(("yes", "no")))
    recall = share(hits, hits + pairs.count(("no", "yes")))
    return {"accuracy": mean([said == true for said, true in pairs]),
            "precision": precision, "recall": recall,
            "f1": share(2 * precision * recall, precision + recall),
            "yes_share": mean([said == "yes" for said, _ in pairs])}


class PopeLmmsEval(Pope):
  """lmms-eval's form: the answer must be the word alone."""
  protocol = ("POPE: the stripped lower-case answer is yes or no, anything "
              "else is wrong and in neither precision nor recall "
              "(lmms-eval); yes is the positive class")

  def read(self, prediction: str) -> str:
    return prediction.lower().strip()
