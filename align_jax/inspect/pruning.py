"""Which words carry ALIGN's distribution, and how much is left without others.

AlignVLM (arXiv 2502.01341, section 5.3) finds 3.4 thousand of 128 thousand
words that carry nearly all of it, and evaluates with these alone.

  align-jax inspect words RUN --keep 3400      writes RUN/inspect/kept.json
  align-jax evaluate RUN --keep-words RUN/inspect/kept.json

and to train with them, in a config:

  connector=dict(kind="align", options=dict(
      keep_words=read_words("kept.json"), norm_kept=True))
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.api import Run
from align_jax.errors import InputError

SHARES = (0.5, 0.9, 0.99, 0.999)


@dataclasses.dataclass(frozen=True)
class Kept:
  """The words that carry most of the mass on some images.

  Attributes:
    words: vocabulary ids, the heaviest first.
    mass: share of the distribution that they carry, over all tokens.
    least_mass: the same of the token that loses most.
    needed: share -> how many words carry it.
    negligible: words whose share is below 1e-6, the paper's threshold.
    negligible_mass: what those carry together: a small share a word is not
      a small share of all.
    vocabulary: V.
    tokens: visual tokens looked at.
  """
  words: tuple[int, ...]
  mass: float
  least_mass: float
  needed: dict[str, int]
  negligible: int
  negligible_mass: float
  vocabulary: int
  tokens: int


def find(run: Run, images: Sequence[Any], count: int) -> Kept:
  """The `count` words with the largest mean probability on images.

  Raises:
    InputError: the connector has no distribution over words, or `count` is
      not between 1 and V.
  """
  total, tokens = None, 0
  for image in images:  # one at a time: T * V numbers each
    probs = run.distribution([image])
    if probs is None:
      raise InputError(f"connector {run.config.model.connector.kind!r} has no "
                       "distribution over words")
    total = probs[0].sum(0, dtype=np.float64) + (
        0 if total is None else total)
    tokens += probs.shape[1]
  vocabulary = len(total)
  if not 1 <= count <= vocabulary:
    raise InputError(f"{count:,} words to keep of {vocabulary:,}")
  mean = total / total.sum()
  order = np.argsort(-mean, kind="stable")
  carried = np.cumsum(mean[order])
  kept = order[:count]
  least = min(float(run.distribution([image])[0][:, kept].sum(-1).min())
              for image in images)
  small = mean < 1e-6
  return Kept(
      words=tuple(int(w) for w in kept), mass=float(carried[count - 1]),
      least_mass=least,
      needed={f"{s:g}": int(np.searchsorted(carried, s) + 1)
              for s in SHARES},
      negligible=int(small.sum()), negligible_mass=float(mean[small].sum()),
      vocabulary=vocabulary, tokens=tokens)


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
