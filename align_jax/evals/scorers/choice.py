"""Multiple choice: which letter an answer picks.

Parsers in use:
  letter   lmms-eval's SEED-Bench (lmms_eval/tasks/seedbench/utils.py): the
           first character of the stripped answer
  leading  LLaVA's ScienceQA as lmms-eval has it
           (lmms_eval/tasks/scienceqa/utils.py): the letter alone, or a
           capital letter and a period at the start
  infer    VLMEvalKit (vlmeval/utils/matching_util.py: can_infer, as of
           2024; later versions also ask that the letter stand near the end):
           the one letter that stands alone, or else the one option whose
           text the answer holds; what it gives to a language model is wrong
           here

Items have their `options`; `answer` is the true letter. Items that share
facts["group"] are the same question: for MMBench with its options in
another order (circular evaluation), for MMVP with the other image of a pair.
facts["size"] says how many there are; a group that a limited sample has cut
is not counted, and `groups_cut` says how many there were.
"""

import string
from collections import defaultdict
from collections.abc import Sequence

from align_jax.evals.scorers.protocol import Scorer, mean
from align_jax.evals.tasks import Item

LETTERS = string.ascii_uppercase
_MARKS = ".()[],:;!*#{}"
_REFUSALS = ("Sorry, I can't help with images of people yet.",
             "I can't process this file.",
             "I'm sorry, but without the image provided",
             "Cannot determine the answer")


def letters(item: Item) -> str:
  """The letters of an item's options."""
  return LETTERS[:len(item.options)]


def infer_letter(answer: str, options: Sequence[str]) -> str:
  """The letter standing alone, "Z" for a refusal, "" where it is unclear."""
  if any(refusal in answer for refusal in _REFUSALS):
    return "Z"
  words = answer.translate(str.maketrans(_MARKS, " " * len(_MARKS))).split()
  known = LETTERS[:len(options)]
  found = [letter for letter in known if letter in words]
  if len(found) == 1:
    return found[0]
  return "Z" if not found and "Z" in words else ""


def infer_text(answer: str, options: Sequence[str]) -> str:
  """The letter of the one option whose text the answer holds, or ""."""
  answer = answer.lower()
  texts = [option.lower() for option in options]
  if len(answer) > 2 * sum(map(len, texts)):
    return ""
  found = [n for n, text in enumerate(texts) if text in answer]
  return LETTERS[found[0]] if len(found) == 1 else ""


def infer(answer: str, options: Sequence[str]) -> str:
  """VLMEvalKit's exact matching."""
  return infer_letter(answer, options) or infer_text(answer, options)


class Letter(Scorer):
  """SEED-Bench, lmms-eval's form; also for likelihoods over letters."""
  protocol = ("multiple choice; the first character of the stripped answer "
              "is the letter (lmms-eval, SEED-Bench)")

  def one(self, prediction: str, item: Item) -> float:
    return prediction.strip()[:1] == item.answer


class Leading(Scorer):
  """ScienceQA, LLaVA's and lmms-eval's form."""
  protocol = ("multiple choice; the answer is the letter, or begins with a "
              "capital letter and a period (LLaVA, lmms-eval ScienceQA)")

  def one(self, prediction: str, item: Item) -> float:
    if prediction == item.answer:
      return True
    return (prediction[:1].isupper() and prediction[1:2] == "."
            and prediction[0] == item.answer)


class Infer(Scorer):
  """VLMEvalKit's exact matching, no language model behind it."""
  protocol = ("multiple choice; the one letter that stands alone, else the "
              "one option whose text is held; unclear answers are wrong "
              "(VLMEvalKit, exact matching)")

  def one(self, prediction: str, item: Item) -> float:
    return infer(prediction, item.options) == item.answer


class Circular(Infer):
  """MMBench: right only if right in every order of the options."""
  protocol = ("circular multiple choice: a question counts once, and is right "
              "if right in every rotation of its options; "
              + Infer.protocol.partition("; ")[2])
  headline, sampled = "circular_accuracy", False

  def total(self, predictions: Sequence[str],
            items: Sequence[Item]) -> dict[str, float]:
    scores = self.scores(predictions, items)
    return _grouped(self.headline, scores, items) | {
        "vanilla_accuracy": mean(
            [s for s, i in zip(scores, items)
             if i.facts.get("rotation", 0) == 0] or scores)}


class Pairs(Infer):
  """MMVP: a pair of images counts once, if both are answered right.

  The authors grade free answers with a language model; here the letter is
  parsed, as VLMEvalKit does.
  """
  protocol = ("pairs of images: right if both questions are; no grading by a "
              "language model; " + Infer.protocol)
  headline, sampled = "pair_accuracy", False

  def total(self, predictions: Sequence[str],
            items: Sequence[Item]) -> dict[str, float]:
    scores = self.scores(predictions, items)
    return _grouped(self.headline, scores, items) | {
        "question_accuracy": mean(scores)}


def _grouped(name: str, scores: Sequence[float],
             items: Sequence[Item]) -> dict[str, float]:
  """The share of groups all of whose answers are right."""
  groups: dict[str, list[float]] = defaultdict(list)
  sizes = {}
  for score, item in zip(scores, items, strict=True):
    groups[item.facts["group"]].append(score)
    sizes[item.facts["group"]] = item.facts["size"]
  whole = [float(min(found) == 1) for group, found in groups.items()
           if len(found) == sizes[group]]
  cut = len(groups) - len(whole)
  return {name: mean(whole) if whole else 0.0} | (
      {"groups_cut": cut} if cut else {})
