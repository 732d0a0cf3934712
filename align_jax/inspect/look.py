"""Looks into a run: images in, words, figures and pictures out."""

import dataclasses
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.api import Run
from align_jax.data.images import listed
from align_jax.evals.scorers import SCORERS
from align_jax.evals.tasks import Item, Task, sample
from align_jax.inspect import geometry, pictures, words
from align_jax.inspect.words import Words

QUESTIONS = 4  # shown for an image


@dataclasses.dataclass(frozen=True)
class Look:
  """What was seen of I images.

  Attributes:
    pixels: u8[I,H,W,3].
    tokens: f32[I,T,D], the visual tokens.
    nearest: words by cosine, of I * T tokens.
    top: words by probability, where the connector has any.
    entropy: f32[I * T] in nats, likewise.
    effective: i32[I * T], words that carry 90 %, likewise.
    mean_probs: f64[V], the distribution averaged over all tokens.
  """
  pixels: np.ndarray
  tokens: np.ndarray
  nearest: Words
  top: Words | None = None
  entropy: np.ndarray | None = None
  effective: np.ndarray | None = None
  mean_probs: np.ndarray | None = None


def look(run: Run, images: Sequence[Any], k: int = 5,
         asked: Sequence[str] = ()) -> Look:
  """Encodes images and reads their visual tokens.

  Args:
    run: whose tokens.
    images: each is encoded alone.
    k: words a token.
    asked: a question for each image, for connectors that read it; none is
      the empty one.
  """
  asked = list(asked) or [""] * len(images)
  tokens = run.visual_tokens(images, asked)
  flat = tokens.reshape(-1, tokens.shape[-1])
  seen = Look(run.read(images)[0], tokens,
              words.nearest_words(flat, run.embeddings, k))
  parts = []
  # One image at a time: T * V numbers each.
  for image, text in zip(images, asked):
    probs = run.distribution([image], text)
    if probs is None:
      return seen
    probs = probs[0]
    parts.append((words.top_words(probs, k), words.entropy(probs),
                  words.effective_words(probs), probs.mean(0)))
  tops, entropies, effective, means = zip(*parts)
  top = Words(np.concatenate([t.ids for t in tops]),
              np.concatenate([t.scores for t in tops]))
  return dataclasses.replace(
      seen, top=top, entropy=np.concatenate(entropies),
      effective=np.concatenate(effective),
      mean_probs=np.mean(means, axis=0, dtype=np.float64))


def tell(run: Run, seen: Look, image: int) -> list[dict[str, Any]]:
  """The tokens of one image, for JSON."""
  count = seen.tokens.shape[1]
  rows = []
  for token in range(image * count, (image + 1) * count):
    row = {"nearest": _pairs(run, seen.nearest, token)}
    if seen.top is not None:
      row |= {"top": _pairs(run, seen.top, token),
              "entropy": round(float(seen.entropy[token]), 4),
              "effective_words": int(seen.effective[token])}
    rows.append(row)
  return rows


def draw(run: Run, seen: Look, image: int,
         answers: Sequence[tuple[str, str, bool]] = ()) -> bytes | None:
  """One image under its words; None where tokens form no grid.

  A connector that mixes words is drawn by its own distribution, any other by
  nearest words.
  """
  count = seen.tokens.shape[1]
  # A class token stands before the patches, over none of them.
  before = int(run.config.model.tower.class_token
               and pictures.grid_of(count) is None)
  if pictures.grid_of(count - before) is None:
    return None
  found = seen.top or seen.nearest
  part = slice(image * count, (image + 1) * count)
  shown = [[words.show(run.tokenizer, i) for i in row]
           for row in found.ids[part]]
  title, note = (("What each visual token is made of",
                  "the likeliest words of its distribution; the darker a "
                  "cell, the larger the share of its first word")
                 if seen.top else
                 ("What each visual token is nearest to",
                  "words of the language model by cosine; the darker a cell, "
                  "the larger the cosine of its first word"))
  if before:
    note += f". Class token: {', '.join(shown[0][:3])}"
  return pictures.words_over_patches(
      seen.pixels[image], shown[before:], found.scores[part, 0][before:],
      title, note, answers)


def distribution(run: Run, seen: Look, k: int = 24) -> dict[str, Any] | None:
  """Figures of ALIGN's distribution over all tokens looked at."""
  if seen.top is None:
    return None
  best = np.argsort(seen.mean_probs)[::-1][:k]
  return {
      "tokens": len(seen.entropy), "vocabulary": len(seen.mean_probs),
      "uniform": math.log(len(seen.mean_probs)),
      "entropy": float(seen.entropy.mean()),
      "effective_words": int(np.median(seen.effective)),
      "effective_range": [int(seen.effective.min()),
                          int(seen.effective.max())],
      "largest": float(seen.top.scores[:, 0].mean()),
      "words": [(words.show(run.tokenizer, i), float(seen.mean_probs[i]))
                for i in best]}


def compare(run: Run, seen: Look) -> tuple[dict[str, Any], bytes]:
  """Figures and a picture of visual tokens beside word embeddings."""
  flat, table = seen.tokens.reshape(-1, seen.tokens.shape[-1]), run.embeddings
  picture = pictures.norms(np.linalg.norm(flat, axis=-1),
                           np.linalg.norm(table, axis=-1))
  return geometry.compare(flat, table), picture


def questions(run: Run, task: Task, count: int, seed: int = 0,
              asked: Path | None = None) -> dict[int, list[dict[str, Any]]]:
  """Images of a task, with questions and the run's answers.

  Args:
    run: answers where nothing was asked before.
    task: has the questions.
    count: images.
    seed: of the choice, by which alone they are chosen.
    asked: the per-question file of an evaluation, if there is one.

  Returns:
    {image: [{"question", "answer", "prediction", "right"}, ...]}.
  """
  if asked is not None and asked.is_file():
    records = [json.loads(line) for line in
               asked.read_text(encoding="utf-8").splitlines()]
    chosen = _chosen([r["image"] for r in records], count, seed)
    return {image: _varied([r for r in records if r["image"] == image], seed)
            for image in chosen}
  chosen = _chosen([i.image for i in sample(task.items, 0)], count, seed)
  found: dict[int, list[Item]] = {
      image: _varied([dataclasses.asdict(i) for i in task.items
                      if i.image == image], seed) for image in chosen}
  rows = [(image, Item(**row)) for image, rows in found.items()
          for row in rows]
  prompts = [dataclasses.replace(run.prompt(task.example(item)), images=image)
             for image, item in rows]
  answers = run.generator().generate(
      prompts, lambda image: run.read(listed(task.image(image))),
      task.max_new_tokens or run.config.eval.max_new_tokens, beam=task.beam)
  scorer = SCORERS.get(task.scorer)()
  out: dict[int, list[dict[str, Any]]] = {image: [] for image in chosen}
  for (image, item), ids in zip(rows, answers):
    said = run.text(ids)
    out[image].append({
        "question": item.question, "answer": item.answer, "prediction": said,
        "right": scorer.scores([said], [item]) == [1.0]})
  return out


def losses(workdir: Path) -> list[tuple[float, float]]:
  """(step, loss) from the run's metrics; empty where there are none."""
  path = workdir / "metrics.jsonl"
  if not path.is_file():
    return []
  points = {}
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      row = json.loads(line)
    except ValueError:  # the last line of a run that was killed
      continue
    if "step" in row and row.get("loss") is not None:
      points[float(row["step"])] = float(row["loss"])
  return sorted(points.items())


def _pairs(run: Run, found: Words, token: int) -> list[list[Any]]:
  return [[words.show(run.tokenizer, i), round(float(s), 4)]
          for i, s in zip(found.ids[token], found.scores[token])]


def some_images(images: int, count: int, seed: int) -> list[int]:
  """`count` of so many images, by the seed alone."""
  return _chosen(range(images), count, seed)


def _chosen(images: Sequence[int], count: int, seed: int) -> list[int]:
  known = sorted(set(images))
  random.Random(f"inspect/{seed}").shuffle(known)
  return known[:count]


def _varied(rows: Sequence[dict[str, Any]], seed: int
            ) -> list[dict[str, Any]]:
  """A few questions, in turn of each kind."""
  rows = list(rows)
  random.Random(f"inspect/{seed}").shuffle(rows)
  kinds = sorted({r["type"] for r in rows})
  turns = {k: iter([r for r in rows if r["type"] == k]) for k in kinds}
  out: list[dict[str, Any]] = []
  while len(out) < min(QUESTIONS, len(rows)):
    for kind in kinds:
      row = next(turns[kind], None)
      if row is not None and len(out) < QUESTIONS:
        out.append(row)
  return out
