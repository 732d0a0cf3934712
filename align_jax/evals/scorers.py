"""From an answer's text to right or wrong; every rule has a name.

A score means nothing without the rule that made it, so results carry
`PROTOCOLS[...]` beside every accuracy.
"""

import string

_DROP = str.maketrans("", "", string.punctuation)

PROTOCOLS = {
    "generate": (
        "greedy generation; exact match after lower-casing, dropping "
        "punctuation and joining white space"),
    "likelihood": (
        "closed set; the answer whose tokens and end of turn have the largest "
        "summed log-probability; exact match"),
}


def normalise(text: str) -> str:
  """Lower case, no punctuation, single spaces.

  >>> normalise(" A Circle. ")
  'a circle'
  """
  return " ".join(text.lower().translate(_DROP).split())


def exact_match(prediction: str, truth: str) -> bool:
  """Whether two answers are equal once normalised."""
  return normalise(prediction) == normalise(truth)
