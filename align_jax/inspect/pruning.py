"""Which words carry ALIGN's distribution, and how much is left without others.

AlignVLM (arXiv 2502.01341, section 5.3) finds 3.4 thousand of 128 thousand
words that carry nearly all of it, and evaluates with these alone.

  align-jax inspect words RUN --keep 3400    writes RUN/inspect/kept_3400.json
  align-jax evaluate RUN --keep-words RUN/inspect/kept_3400.json

The words are chosen on training images, so that they can be tried on others.
Beside them stand as many others: `--choose random`, and `--choose frequent`,
those most frequent in what was trained on. And to train with them, in a config:

  connector=dict(kind="align", options=dict(
      keep_words=read_words("kept_3400.json"), norm_kept=True))
"""

import collections
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.api import Run
from align_jax.data.example import PLACEHOLDER
from align_jax.data.pipeline import open_source
from align_jax.errors import InputError
from align_jax.inspect import words as of_words
from align_jax.registry import nearest

SHARES = (0.5, 0.9, 0.99, 0.999)
CHOICES = ("heaviest", "random", "frequent")
_EXAMPLES = 2000  # of which the text is counted


@dataclasses.dataclass(frozen=True)
class Kept:
  """Some words, and how much of the mass on some images they carry.

  Attributes:
    words: vocabulary ids, the first choice first.
    choice: how they were chosen; one of CHOICES.
    mass: share of the distribution that they carry, over all tokens.
    least_mass: the same of the token that loses most.
    needed: share -> how many of the heaviest words carry it.
    covered: words that are the likeliest of at least one token.
    entropy: of a token's distribution, the mean over tokens, in nats.
    entropy_of_mean: of the mean distribution: how far the tokens together
      spread over the vocabulary.
    negligible: words whose share is below 1e-6, the paper's threshold.
    negligible_mass: what those carry together: a small share a word is not
      a small share of all.
    vocabulary: V.
    tokens: visual tokens looked at.
  """
  words: tuple[int, ...]
  choice: str
  mass: float
  least_mass: float
  needed: dict[str, int]
  covered: int
  entropy: float
  entropy_of_mean: float
  negligible: int
  negligible_mass: float
  vocabulary: int
  tokens: int


def find(run: Run, images: Sequence[Any], count: int,
         choice: str = "heaviest", seed: int = 0) -> Kept:
  """`count` words, and what they carry on images.

  Args:
    run: of a connector that mixes words.
    images: to look at.
    count: of words.
    choice: "heaviest", those with the largest mean probability; "random"; or
      "frequent", those most frequent in the text that was trained on (of
      words that are not in it, the first of the vocabulary).
    seed: of a random choice.

  Raises:
    InputError: the connector has no distribution over words, there is no such
      choice, or `count` is not between 1 and V.
  """
  if choice not in CHOICES:
    raise InputError(f"choice {choice!r} is none of {', '.join(CHOICES)}"
                     f"{nearest(choice, CHOICES)}")
  total, tokens, firsts, entropy = 0.0, 0, set(), 0.0
  for image in images:  # one at a time: T * V numbers each
    probs = run.distribution([image])
    if probs is None:
      raise InputError(f"connector {run.config.model.connector.kind!r} has no "
                       "distribution over words")
    total = total + probs[0].sum(0, dtype=np.float64)
    firsts |= set(probs[0].argmax(-1).tolist())
    entropy += float(of_words.entropy(probs[0]).sum())
    tokens += probs.shape[1]
  vocabulary = len(total)
  if not 1 <= count <= vocabulary:
    raise InputError(f"{count:,} words to keep of {vocabulary:,}")
  mean = total / total.sum()
  heaviest = np.argsort(-mean, kind="stable")
  order = {"heaviest": lambda: heaviest,
           "random": lambda: np.random.default_rng(seed).permutation(
               vocabulary),
           "frequent": lambda: np.argsort(
               -text_counts(run, vocabulary), kind="stable")}[choice]()
  carried, kept = np.cumsum(mean[heaviest]), order[:count]
  least = min(float(run.distribution([image])[0][:, kept].sum(-1).min())
              for image in images)
  small = mean < 1e-6
  return Kept(
      words=tuple(int(w) for w in kept), choice=choice,
      mass=float(mean[kept].sum()), least_mass=least,
      needed={f"{s:g}": int(np.searchsorted(carried, s) + 1)
              for s in SHARES},
      covered=len(firsts), entropy=entropy / tokens,
      entropy_of_mean=float(of_words.entropy(mean[None])[0]),
      negligible=int(small.sum()), negligible_mass=float(mean[small].sum()),
      vocabulary=vocabulary, tokens=tokens)


def text_counts(run: Run, vocabulary: int) -> np.ndarray:
  """i64[V]: how often words stand in some examples of the run's training."""
  found: collections.Counter[int] = collections.Counter()
  sources = run.config.data.sources
  for name, config in sources.items():
    opened = open_source(name, config)
    few = min(len(opened), _EXAMPLES // len(sources))
    for at in np.linspace(0, len(opened) - 1, few):
      for turn in opened[int(at)]["conversation"]:
        text = turn["content"].replace(PLACEHOLDER, "")
        found.update(run.tokenizer(text, add_special_tokens=False)
                     ["input_ids"])
  counts = np.zeros(vocabulary, np.int64)
  for word, times in found.items():
    counts[word] = times
  return counts


def write_words(kept: Kept, path: str | Path) -> None:
  """Writes what `read_words` reads."""
  Path(path).write_text(json.dumps(dataclasses.asdict(kept)) + "\n",
                        encoding="utf-8")


def read_words(path: str | Path) -> tuple[int, ...]:
  """The words of a file that `align-jax inspect words` wrote.

  Raises:
    InputError: no such file, or no list of words in it.
  """
  try:
    words = json.loads(Path(path).read_text(encoding="utf-8"))["words"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(f"{path} holds no words to keep; `align-jax inspect "
                     "words RUN` writes such a file") from error
  return tuple(int(w) for w in words)
