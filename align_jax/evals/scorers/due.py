"""F1 of extracted key-value pairs, as the DUE benchmark counts them.

Source: due-benchmark/evaluator: due_evaluator/scorers/fscorer.py, with letter
case ignored, as X-PLUG/mPLUG-DocOwl runs it for DeepForm and KleisterCharity
(DocOwl1.5/evaluation/due_benchmarks_eval.py): every key of a document is one
question, an answer of exactly "None" says that the document has no such key,
and the pairs of all documents are counted together.

An item's facts:
  document  its document; a pair counts within its document alone
  key       such as "gross_amount"
  values    what the document has for the key, a list of lists: each value
            with its accepted variants; [] where it has none
"""

from collections import defaultdict
from collections.abc import Sequence

from align_jax.evals.scorers.protocol import Scorer
from align_jax.evals.tasks import Item

ABSENT = "None"

# A key and the upper-case texts that stand for its value.
Pair = tuple[str, tuple[str, ...]]


class DueF1(Scorer):
  """Micro-averaged F1, with its precision and recall."""
  protocol = ("DUE F1 over key-value pairs of all documents; letter case "
              "ignored, variants accepted, \"None\" is no pair "
              "(due_evaluator, mPLUG-DocOwl)")
  headline, sampled = "f1", False

  def one(self, prediction: str, item: Item) -> float:
    """Whether this pair alone is right; no part of the F1."""
    said, truths = _said(prediction, item), _truths(item)
    if not truths or not said:
      return float(not truths and not said)
    return float(any(_same(pair, truth) for pair in said for truth in truths))

  def total(self, predictions: Sequence[str],
            items: Sequence[Item]) -> dict[str, float]:
    documents: dict[str, tuple[list[Pair], list[Pair]]] = defaultdict(
        lambda: ([], []))
    for prediction, item in zip(predictions, items, strict=True):
      said, true = documents[item.facts["document"]]
      said += _said(prediction, item)
      # A key that is asked twice has its values once.
      if item.facts["key"] not in {key for key, _ in true}:
        true += _truths(item)
    precision = _hits((said, true) for said, true in documents.values())
    recall = _hits((true, said) for said, true in documents.values())
    both = precision + recall
    return {"f1": 2 * precision * recall / both if both else 0.0,
            "precision": precision, "recall": recall}


def _said(prediction: str, item: Item) -> list[Pair]:
  text = prediction.strip().replace("\n", "")
  return [] if text == ABSENT else [(item.facts["key"], (text.upper(),))]


def _truths(item: Item) -> list[Pair]:
  return [(item.facts["key"], tuple(v.upper() for v in variants))
          for variants in item.facts["values"]]


def _same(a: Pair, b: Pair) -> bool:
  """Equal keys, and the value of one among the other's texts."""
  return a[0] == b[0] and (a[1][0] in b[1] or b[1][0] in a[1])


def _hits(sides: "Sequence[tuple[list[Pair], list[Pair]]]") -> float:
  """Share of the left pairs that find a right pair of their own."""
  found = asked = 0
  for left, right in sides:
    free = list(right)
    for pair in left:
      match = next((i for i, other in enumerate(free)
                    if _same(pair, other)), None)
      asked += 1
      if match is not None:
        found += 1
        free.pop(match)
  return found / asked if asked else 0.0
