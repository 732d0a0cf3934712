"""How a connector starts: what its tokens tell apart before any training.

With a LayerNorm on the logits ALIGN's softmax begins almost uniform, so every
visual token is nearly the mean word, whatever the image shows, and what
distinguishes two images is a small part of each token. The gain of that norm
decides how small: more gain, fewer words a token, tokens that differ more,
until each is a single word and its gradient to all others is gone.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.api import Run
from align_jax.build import build, init_params
from align_jax.config import Config
from align_jax.inspect import geometry, words
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh

_SCALE = "norm2_scale_v"


@dataclasses.dataclass(frozen=True)
class Start:
  """Figures of a set of visual tokens.

  Attributes:
    gain: initial gain of the norm over the vocabulary; None where a connector
      has none.
    norm: mean length of a token, in those of a word.
    apart: mean length of a token less the mean token, in those of a word less
      the mean word: what is left to tell tokens apart by.
    cosine: mean cosine of two tokens; 1 is "all alike".
    entropy: of the distribution over words, in nats; None without one.
    exp_entropy: its exponential, a number of words.
    effective_words: the fewest words that carry 90 %, median.
    largest: mean probability of a token's first word.
  """
  gain: float | None
  norm: float
  apart: float
  cosine: float
  entropy: float | None = None
  exp_entropy: float | None = None
  effective_words: int | None = None
  largest: float | None = None


def untrained(config: Config) -> Run:
  """A run that has made no step."""
  mesh = make_mesh(config.mesh)
  parts = build(config.model, Layout(mesh))
  patterns = [p for stage in config.stages for p in stage.train]
  params, _ = init_params(parts, mesh, patterns, jax.random.key(config.seed))
  return Run(None, config, parts, params, 0)


def images_of(config: Config, count: int) -> list[Any]:
  """The first image of each of `count` examples, spread over the sources."""
  from align_jax.data.pipeline import open_source

  found = []
  for name, source in config.data.sources.items():
    opened = open_source(name, source)
    each = -(-count // len(config.data.sources))
    for i in np.linspace(0, len(opened) - 1, min(each, len(opened))):
      found += opened[int(i)]["images"][:1]
  return found[:count]


def measure(run: Run, images: Sequence[Any],
            gains: Sequence[float] = ()) -> list[Start]:
  """The start as it is and, for ALIGN, with other gains."""
  scale = run.params["connector"].get(_SCALE)
  own = None if scale is None else float(jnp.mean(scale))
  found = [_one(run, images, own)]
  for gain in gains if scale is not None else ():
    connector = run.params["connector"] | {
        _SCALE: jnp.full_like(scale, gain)}
    found.append(_one(dataclasses.replace(
        run, params=run.params | {"connector": connector}), images, gain))
  return found


def _one(run: Run, images: Sequence[Any], gain: float | None) -> Start:
  tokens = run.visual_tokens(images)
  tokens = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
  table = run.embeddings.astype(np.float64)
  spread = lambda x: np.linalg.norm(x - x.mean(0), axis=-1).mean()
  found = Start(
      gain=gain, apart=float(spread(tokens) / spread(table)),
      norm=float(np.linalg.norm(tokens, axis=-1).mean()
                 / np.linalg.norm(table, axis=-1).mean()),
      cosine=geometry.cloud(tokens).cosine)
  parts = []
  for image in images:  # one at a time: T * V numbers each
    probs = run.distribution([image])
    if probs is None:
      return found
    parts.append((words.entropy(probs[0]), words.effective_words(probs[0]),
                  probs[0].max(-1)))
  entropy, effective, largest = (np.concatenate(x) for x in zip(*parts))
  return dataclasses.replace(
      found, entropy=float(entropy.mean()),
      exp_entropy=float(np.exp(entropy).mean()),
      effective_words=int(np.median(effective)),
      largest=float(largest.mean()))


def table(starts: Sequence[Start]) -> str:
  """One line a start; the first is the config's own."""
  lines = ["    gain  apart  cosine   norm  words(90%)  exp(entropy)  largest"]
  for i, s in enumerate(starts):
    gain = "-" if s.gain is None else f"{s.gain:g}"
    line = (f"{'*' if i == 0 else ' '} {gain:>6}  {s.apart:5.3f}  "
            f"{s.cosine:6.3f}  {s.norm:5.2f}")
    if s.entropy is not None:
      line += (f"  {s.effective_words:>10,}  {s.exp_entropy:>12,.0f}  "
               f"{s.largest:7.4f}")
    lines.append(line)
  return "\n".join(lines + [
      "* the config as it is. apart, norm: in those of the table's words"])
