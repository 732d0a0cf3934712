"""VQA accuracy against ten people's answers (arXiv 1505.00468).

  accuracy = mean over people of min(1, others who said the same / 3)

Two normalisers are in use. `official` is GT-Vision-Lab/VQA:
PythonEvaluationTools/vqaEvaluation/vqaEval.py: the prediction loses its
punctuation, articles and number words; people's answers lose punctuation
alone, and only where they do not all agree. `evalai` is that of the EvalAI
server and of TextVQA (facebookresearch/mmf: pythia/tasks/processors.py,
EvalAIAnswerProcessor; lmms_eval/tasks/_task_utils/vqa_eval_metric.py): both
sides alike, commas and question marks dropped first, "'s" set apart.
VLMEvalKit (vlmeval/dataset/utils/vqa_eval.py: process_answer) treats both
sides as the official script treats predictions.

Peculiarities kept, since published numbers have them: only the first 32
periods are removed, a comma between two digits anywhere makes every mark
vanish instead of becoming a space, and "(?!<=\\d)" does not look behind.
"""

import re

from align_jax.evals.scorers.protocol import Scorer
from align_jax.evals.tasks import Item

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {word: str(n) for n, word in enumerate(
    ("zero one two three four five six seven eight nine ten").split())
           } | {"none": "0"}
_MARKS = ";/[]\"{}()=+\\_-><@`,?!"
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
_PERIODS = 32  # the value of re.UNICODE, which is given as the count
_COMMA = re.compile(r"\d,\d")
_COMMAS = re.compile(r"(?<=\d),+(?=\d)")


def _contractions() -> dict[str, str]:
  """Words without their apostrophe -> with it; see the module's sources."""
  found = {}
  whole = """
      ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't
      haven't he'd he's how'd how'll how's isn't it'd it'll ma'am mightn't
      might've mustn't must've needn't not've o'clock oughtn't shan't
      should've shouldn't somebody'll somebody's someone'd someone'll
      someone's something'd something'll that's there'd there're there's
      they'd they'll they're they've wasn't we've weren't what'll what're
      what's what've when's where'd where's where've who'd who'll who's
      who've why'll why're why's won't would've wouldn't y'all you'd you'll
      you're you've"""
  for word in whole.split():
    found[word.replace("'", "")] = word
  for word in ("let's", "she's"):
    found[word] = word
  # With "'ve" behind, either apostrophe may be the one that is missing.
  for word in """couldn't hadn't he'd it'd mightn't she'd shouldn't somebody'd
      someone'd something'd there'd they'd we'd who'd wouldn't y'all'd
      you'd""".split():
    plain = word.replace("y'all'd", "yall'd") if word == "y'all'd" else (
        word.replace("'", ""))
    found[f"{plain}'ve"] = f"{word}'ve"
    found[f"{word}ve"] = f"{word}'ve"
  return found | {
      "y'alld've": "y'all'd've", "yall'll": "y'all'll",
      "y'allll": "y'all'll", "twas": "'twas", "somebody'd": "somebodyd",
      "ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at",
      # Written with capitals, so that they never match: texts are lower case.
      "Id've": "I'd've", "I'dve": "I'd've", "Im": "I'm", "Ive": "I've"}


CONTRACTIONS = _contractions()


def punctuation(text: str, comma: re.Pattern = _COMMA) -> str:
  """Marks beside a space vanish, marks inside words become spaces."""
  out, numbers = text, comma.search(text) is not None
  for mark in _MARKS:
    beside = f"{mark} " in text or f" {mark}" in text
    out = out.replace(mark, "" if beside or numbers else " ")
  return _PERIOD.sub("", out, count=_PERIODS)


def words(text: str) -> str:
  """Lower case, number words as digits, no articles, apostrophes put in."""
  kept = [NUMBERS.get(word, word) for word in text.lower().split()]
  return " ".join(CONTRACTIONS.get(word, word) for word in kept
                  if word not in ARTICLES)


def official(text: str) -> str:
  """What the official script makes of a prediction.

  >>> official("Two dogs, and a cat.")
  '2 dogs and cat'
  """
  text = text.replace("\n", " ").replace("\t", " ").strip()
  return words(punctuation(text))


def evalai(text: str) -> str:
  """What EvalAI makes of either side.

  >>> evalai("The dog's 1,000 bones?")
  "dog 's 1000 bones"
  """
  text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
  text = text.strip().replace("\n", " ").replace("\t", " ").strip()
  return words(punctuation(text, _COMMAS))


def agreement(prediction: str, people: tuple[str, ...]) -> float:
  """Mean over people of min(1, others who gave this answer / 3)."""
  same = [answer == prediction for answer in people]
  return sum(min(1.0, (sum(same) - mine) / 3) for mine in same) / len(same)


class VqaOfficial(Scorer):
  """VQAv2's, VizWiz's and GQA-style boards' own script."""
  protocol = ("VQA accuracy over people's answers; normaliser of the official "
              "vqaEval.py (people's answers lose punctuation alone, where "
              "they differ)")

  def one(self, prediction: str, item: Item) -> float:
    people = item.answers
    if len(set(people)) > 1:
      people = tuple(map(punctuation, people))
    return agreement(official(prediction), people)


class VqaEvalAI(Scorer):
  """TextVQA's, and lmms-eval's for VQAv2 and VizWiz too."""
  protocol = ("VQA accuracy over people's answers; both sides by "
              "EvalAIAnswerProcessor (M4C, lmms-eval)")

  def one(self, prediction: str, item: Item) -> float:
    return agreement(evalai(prediction), tuple(map(evalai, item.answers)))


class VqaVLMEvalKit(Scorer):
  """VLMEvalKit's, with which AlignVLM was evaluated."""
  protocol = ("VQA accuracy over people's answers; both sides by the official "
              "script's treatment of predictions (VLMEvalKit)")

  def one(self, prediction: str, item: Item) -> float:
    return agreement(official(prediction), tuple(map(official, item.answers)))
