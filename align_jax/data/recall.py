"""Lists of words, and which one follows which: what teaches to look back.

A language model answers from a text by finding what was asked for in it and
saying what stands there. A small one that is trained on a world's questions
alone has not learnt that after a million of their tokens. Lists teach it,
since little else can be learnt from them: the shorter they are and the fewer
their words, the sooner.
"""

import random
import re
from typing import Any

from align_jax.data.example import PLACEHOLDER, Example
from align_jax.errors import InputError


class Recall:
  """Another source's words, dealt anew.

  user       "anchor red cat . sun 30 blue cat"
  assistant  "."
  user       "sun"
  assistant  "30"

  Nothing but the list says what follows a word in it. Its first word, which
  has no space before it and so is another token, is not asked for.

  Attributes:
    of: the source whose texts' words these are.
    words: of a list, all different.
    questions: asked of each list.
    seed: of all draws; sample i is drawn from (seed, i) alone.
  """

  def __init__(self, source: dict[str, Any], words: int = 16, known: int = 0,
               questions: int = 8, seed: int = 0):
    """known: so many of the source's words alone, those met first; 0: all.

    Raises:
      InputError: options out of bounds, or a source with fewer words.
    """
    from align_jax.data import SOURCES
    faults = [f"{name} is {value} (at least {floor})" for name, value, floor in
              (("words", words, 3), ("questions", questions, 1),
               ("known", known or words, words)) if value < floor]
    if faults:
      raise InputError("recall: " + "; ".join(faults))
    self.of = SOURCES.get(source["kind"])(**source.get("options", {}))
    self.words, self.questions, self.seed = words, questions, seed
    self._known = self._met(0, known)[:known] if known else []

  def __len__(self) -> int:
    return len(self.of)

  def __getitem__(self, index: int) -> Example:
    """Sample `index`, of the words of that sample and of those after it.

    Raises:
      InputError: the source has fewer words.
    """
    rng = random.Random(f"recall/{self.seed}/{index}")
    said = rng.sample(self._known or self._met(index, self.words), self.words)
    conversation, shown = [], said
    for _ in range(self.questions):
      at = rng.randint(1, self.words - 2)
      conversation += [
          {"role": "user", "content": " ".join([*shown, said[at]])},
          {"role": "assistant", "content": said[at + 1]}]
      shown = []
    name = f"recall/{index}"
    return {"id": name, "origin": name, "images": [],
            "conversation": conversation}

  def _met(self, index: int, count: int) -> list[str]:
    """The first `count` words, or some more, from sample `index` on."""
    found: dict[str, None] = {}
    for step in range(len(self.of)):
      example = self.of[(index + step) % len(self.of)]
      for turn in example["conversation"]:
        found |= dict.fromkeys(re.findall(
            r"\w+|[^\w\s]", turn["content"].replace(PLACEHOLDER, " ")))
      if len(found) >= count:
        return list(found)
    raise InputError(f"recall: the source has {len(found)} words, and "
                     f"{count} are asked for")
