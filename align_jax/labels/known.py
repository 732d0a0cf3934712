"""Labels that no model made: controls for what labels are worth.

  true       each patch has the words of what stands on it, in a world that
             knows (a source with `truth`)
  shuffled   every image has the labels of another one
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.errors import InputError
from align_jax.labels import store
from align_jax.labels.job import Plan, Progress, image_key
from align_jax.labels.store import read_words

KINDS = ("true", "shuffled")


def derive(kind: str, of: str | Path, folder: str | Path, seed: int = 0,
           progress: Progress = lambda images, left: None,
           ) -> dict[str, Any]:
  """Writes labels of the images, word list and crop of other labels.

  Args:
    kind: "true" or "shuffled".
    of: folder of finished labels.
    folder: to be made.
    seed: of the exchange.
    progress: told of each image.

  Returns:
    The manifest, with `images` and `unlabelled_share`.

  Raises:
    InputError: no such kind, the folder is there, or a source that does not
      know what its patches show.
  """
  if kind not in KINDS:
    raise InputError(f"labels: {kind!r} is none of {', '.join(KINDS)}")
  labels, folder = store.Labels(of), Path(folder)
  if (folder / store.MANIFEST).exists():
    raise InputError(f"{folder} holds labels already; name another folder")
  folder.mkdir(parents=True, exist_ok=True)
  make = {"true": _true, "shuffled": _shuffled}[kind]
  from array_record.python import array_record_module as records
  name = store.shard_name(0, 1)
  writer = records.ArrayRecordWriter(str(folder / name), "group_size:1")
  places: dict[bytes, tuple[int, int]] = {}
  empty = 0
  progress(0, len(labels))
  for key, words, scores in make(labels, seed):
    writer.write(store.encode(key, words, scores))
    places[key] = 0, len(places)
    empty += int((words < 0).all(-1).sum())
    progress(1, max(len(labels) - len(places), 0))
  writer.close()
  manifest = labels.manifest | {"how": kind, "of": labels.manifest["how"],
                                "seed": seed, "shards": 1, "shard": len(places)}
  (folder / store.WORDS).write_text(
      labels.words_file.read_text(encoding="utf-8"), encoding="utf-8")
  store.write_index(folder, places)
  # Last: without it the folder is free, so that the command can be repeated.
  (folder / store.MANIFEST).write_text(
      json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
  return manifest | {"images": len(places), "unlabelled_share": empty / max(
      len(places) * labels.patches, 1)}


def _shuffled(labels: store.Labels, seed: int) -> Any:
  """Each image with the labels of the next in a random ring."""
  keys = labels.keys()
  if len(keys) < 2:
    raise InputError("labels of one image cannot be exchanged")
  random.Random(f"shuffled/{seed}").shuffle(keys)
  for key, other in zip(keys, [*keys[1:], keys[0]]):
    yield key, *labels[other]


def _true(labels: store.Labels, seed: int) -> Any:
  """What is there, each word of a patch with the same score."""
  del seed
  from align_jax.data import SOURCES
  made = labels.manifest["source"]
  source = SOURCES.get(made["kind"])(**made.get("options", {}))
  if not hasattr(source, "truth"):
    raise InputError(f"source {made['kind']!r} does not know what its patches "
                     "show, so there are no true labels")
  place = {w: i for i, w in enumerate(read_words(labels.words_file))}
  grid = round(labels.patches ** 0.5)
  for scene in range(source.scenes):
    key, _ = image_key(source.image(scene))
    words = np.full((labels.patches, labels.n), -1, np.int32)
    scores = np.zeros((labels.patches, labels.n), np.float32)
    for patch, true in enumerate(source.truth(scene, grid)):
      found = sorted(place[w] for w in true if w in place)[:labels.n]
      words[patch, :len(found)] = found
      scores[patch, :len(found)] = 1.0
    yield key, words, scores


def check_sign(plan: Plan, tower: Any, source: Any,
               most: int = 300) -> tuple[float, dict[str, float]]:
  """The sign of the cosine that ranks things above the background.

  SEA negates CLIP's cosines since those of raw features rank the background
  first; whether that is so with a given tower, scenes of which everything is
  known can tell.

  Args:
    plan: of the labels; its own sign does not matter.
    tower: `load_tower(plan.tower)`.
    source: of training images, with `truth` and `image`.
    most: images to look at.

  Returns:
    1.0 or -1.0, and the mean cosine of things' words on their own patches
    (`things`) and on patches without anything (`background`).

  Raises:
    InputError: the source does not know what its patches show, or none shows
      a word of the list.
  """
  if not hasattr(source, "truth"):
    raise InputError("the sign cannot be checked with a source that does not "
                     "know what its patches show; give it")
  words = read_words(plan.words)
  place = {word: i for i, word in enumerate(words)}
  text_qe = np.asarray(tower.text(words, plan.templates))
  grid = round(tower.config.patches ** 0.5)
  on: list[float] = []
  off: list[float] = []
  for scene in range(min(source.scenes, most)):
    patches_pe = np.asarray(tower.patch_embeds(
        tower.process([source.image(scene)]), plan.how, layer=plan.layer))[0]
    cosine_pq = patches_pe @ text_qe.T
    truth = source.truth(scene, grid)
    for word in set().union(*truth) & place.keys():
      own = cosine_pq[:, place[word]]
      on += [float(c) for c, true in zip(own, truth) if word in true]
      off += [float(c) for c, true in zip(own, truth) if not true]
  if not on or not off:
    raise InputError(
        f"the sign cannot be checked: of {len(words):,} words in {plan.words} "
        f"{'some are' if on else 'none is'} shown by a patch of "
        f"{min(source.scenes, most)} images, and {'some' if off else 'no'} "
        "patches show nothing; give the sign")
  things, background = float(np.mean(on)), float(np.mean(off))
  return (1.0 if things > background else -1.0), {
      "things": things, "background": background}


def foreground(labels: store.Labels, source: Any, words: list[str],
               most: int = 500) -> dict[str, float]:
  """The sign check: labels should be surest where something is.

  With the wrong sign of the cosine the background scores above the things
  that stand before it.

  Args:
    labels: of the source's images.
    source: with `truth(scene, grid)`, the words of each patch.
    words: the word list.
    most: examples to look at.

  Returns:
    Mean best score on patches with a thing (`foreground`) and without
    (`background`); share of the former whose words hold a true one
    (`hit_rate`) and what words drawn at random would reach (`chance`).
  """
  grid = round(labels.patches ** 0.5)
  inside, outside, hits = [], [], []
  for scene in range(min(source.scenes, most)):
    key, _ = image_key(source.image(scene))
    ids, scores = labels[key]
    for patch, true in enumerate(source.truth(scene, grid)):
      (inside if true else outside).append(scores[patch].max())
      if true:
        hits.append(any(words[i] in true for i in ids[patch] if i >= 0))
  return {"foreground": float(np.mean(inside)),
          "background": float(np.mean(outside)),
          "hit_rate": float(np.mean(hits)),
          "chance": min(labels.n / len(words), 1.0)}
