"""Captions and stories against references, in two protocols.

`Coco` is the COCO caption evaluation: tokens as in ptb.py, CIDEr-D, BLEU and
pycocoevalcap's ROUGE-L over all references. `Sam` is the evaluation that
SAM's authors publish (McCartney01/SAM: evaluate_score.py): VQA-like removal
of punctuation, one reference, CIDEr-D and BLEU-4 as in COCO, but ROUGE-L of
the package rouge 1.0.1. Its figures are 100 times these; CIDEr's are not
shares: a caption equal to its reference has up to 10.
"""

from collections.abc import Sequence

from align_jax.evals.scorers.bleu import ORDERS, bleu
from align_jax.evals.scorers.cider import cider
from align_jax.evals.scorers.protocol import Scorer, mean
from align_jax.evals.scorers.ptb import caption_words
from align_jax.evals.scorers.rouge import coco, package
from align_jax.evals.scorers.vqa import punctuation
from align_jax.evals.tasks import Item


def sam_words(text: str) -> str:
  """SAM's normaliser: no articles dropped, no number words changed.

  >>> sam_words("A dog - the park, it's 3.5 m away.")
  "a dog  the park it's 3.5 m away"
  """
  text = text.replace("\n", " ").replace("\t", " ").strip()
  return punctuation(text).strip("'").strip('"').strip().lower()


class Coco(Scorer):
  """CIDEr-D over COCO's tokens, with BLEU-1 to 4 and ROUGE-L beside it."""
  protocol = ("CIDEr-D over PTB tokens without punctuation (pycocoevalcap; "
              "tokeniser of our own, no Java), all references")
  headline, share = "cider", False

  def words(self, text: str) -> str:
    """A text as its tokens, joined by spaces."""
    return caption_words(text)

  def scores(self, predictions: Sequence[str],
             items: Sequence[Item]) -> list[float]:
    return cider(*self._texts(predictions, items))

  def total(self, predictions: Sequence[str],
            items: Sequence[Item]) -> dict[str, float]:
    said, true = self._texts(predictions, items)
    found = {"cider": mean(cider(said, true))}
    found |= {f"bleu{n + 1}": value
              for n, value in zip(range(ORDERS), bleu(said, true))}
    return found | {"rouge_l": mean(
        [self.rouge(s, t) for s, t in zip(said, true)])}

  def rouge(self, said: str, true: Sequence[str]) -> float:
    return coco(said, true)

  def _texts(self, predictions: Sequence[str], items: Sequence[Item]
             ) -> tuple[list[str], list[list[str]]]:
    return ([self.words(p) for p in predictions],
            [[self.words(a) for a in item.answers] for item in items])


class Sam(Coco):
  """SAM's published evaluation: the first reference alone."""
  protocol = ("CIDEr-D and BLEU as pycocoevalcap, ROUGE-L as the package "
              "rouge 1.0.1, after SAM's own normaliser (its "
              "evaluate_score.py); one reference; no tokeniser")

  def words(self, text: str) -> str:
    return sam_words(text)

  def rouge(self, said: str, true: Sequence[str]) -> float:
    return package(said, true[0])

  def _texts(self, predictions: Sequence[str], items: Sequence[Item]
             ) -> tuple[list[str], list[list[str]]]:
    return ([self.words(p) for p in predictions],
            [[self.words(item.answer)] for item in items])


class RougeL(Scorer):
  """DEMON's score: the package's ROUGE-L, headline of its open answers."""
  protocol = ("ROUGE-L F-measure of the package rouge 1.0.1 after the VQA "
              "removal of punctuation, lower case (DEMON, lmms-eval's "
              "interleave bench)")
  headline = "rouge_l"

  def one(self, prediction: str, item: Item) -> float:
    return package(sam_words(prediction), sam_words(item.answer))
