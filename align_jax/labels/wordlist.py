"""A word list for labels: what a corpus talks of.

SEA (2408.11813, appendix C) takes "meaningful and attribute-related words" of
its captions by syntactic analysis and adds a general list. Here a tagger
(HanTa) finds nouns, adjectives and verbs, in their basic forms; proper names
and auxiliaries are left out; the general list is one of the package
english-words.
"""

import collections
import re
from collections.abc import Iterable

from align_jax.errors import InputError

# Tags of the British National Corpus, which HanTa's English model gives.
KINDS = {"nouns": ("NN", "NN0", "NN1", "NN2"),
         "adjectives": ("AJ0", "AJC", "AJS"),
         "verbs": ("VVB", "VVD", "VVG", "VVI", "VVN", "VVZ")}
GENERAL = ("gcide", "web2")
MISSING = ("the word list needs the packages HanTa and english-words; install "
           "align-jax[labels]")

_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def frequent_words(texts: Iterable[str], least: int = 10,
                   kinds: Iterable[str] = tuple(KINDS)) -> dict[str, int]:
  """Basic forms of a corpus's words -> how often they stand there.

  Args:
    texts: captions or documents.
    least: words that are rarer are left out.
    kinds: of `KINDS`.

  Returns:
    The most frequent first; of equals, by the alphabet.

  Raises:
    InputError: HanTa is not installed, or no such kind.
  """
  try:
    from HanTa.HanoverTagger import HanoverTagger
  except ImportError as error:
    raise InputError(MISSING) from error
  unknown = [kind for kind in kinds if kind not in KINDS]
  if unknown:
    raise InputError(f"no kind of word {', '.join(map(repr, unknown))} "
                     f"(known: {', '.join(KINDS)})")
  wanted = {tag for kind in kinds for tag in KINDS[kind]}
  tagger = HanoverTagger("morphmodel_en.pgz")
  found: collections.Counter[str] = collections.Counter()
  for text in texts:
    for sentence in _SENTENCE.split(text):
      words = _WORD.findall(sentence)
      if words:
        found.update(lemma.lower() for _, lemma, tag
                     in tagger.tag_sent(words) if tag in wanted)
  return dict(sorted(((w, c) for w, c in found.items() if c >= least),
                     key=lambda item: (-item[1], item[0])))


def general_words(name: str) -> list[str]:
  """All words of a general list, by the alphabet.

  Raises:
    InputError: no such list, or english-words is not installed.
  """
  if name not in GENERAL:
    raise InputError(f"no general word list {name!r} "
                     f"(known: {', '.join(GENERAL)})")
  try:
    from english_words import get_english_words_set
  except ImportError as error:
    raise InputError(MISSING) from error
  return sorted(get_english_words_set([name], lower=True, alpha=True))


def word_list(texts: Iterable[str], least: int = 10,
              general: str = "") -> list[str]:
  """The corpus's words, then those of a general list that it has not."""
  words = list(frequent_words(texts, least))
  if general:
    known = set(words)
    words += [w for w in general_words(general) if w not in known]
  if not words:
    raise InputError(f"the corpus has no noun, adjective or verb that stands "
                     f"there {least} times")
  return words
