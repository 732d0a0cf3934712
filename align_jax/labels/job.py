"""The labelling job: images x word list -> the words of every patch.

Examples are cut into shards, each a file that is written whole or not at all.
So a job that was killed goes on at the first missing shard, and what it
leaves is the same, byte for byte. Processes share the shards out.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.data.example import Example
from align_jax.data.images import BadImage, ImageReader
from align_jax.errors import InputError
from align_jax.labels import store
from align_jax.labels.store import digest, read_words
from align_jax.ops.top_words import placed, top_words

_TEXT = "text_features.npy"  # there while the job is not done
HOW = ("raw", "maskclip", "surgery", "map_head")


@dataclasses.dataclass(frozen=True)
class Plan:
  """What labels depend on; any other value makes other labels.

  Attributes:
    tower: folder or hub id of a CLIP or SigLIP model, with its text tower.
    words: file of the word list.
    source: kind and options of a data source, whose images are labelled.
    how: patch features in the joint space: "raw", "maskclip", "surgery" or
      "map_head"; see `Tower.patch_embeds`.
    layer: the last layer to run, counted from the end.
    sign: of the cosine. SEA takes -1 for CLIP's raw features (eq 8), which
      rank the background first; the others are right as they are.
    n: words of a patch, 10 in SEA.
    threshold: words whose signed cosine is not above it are dropped, 0 in
      SEA.
    templates: of the text side, each with a "{}"; averaged.
    crop_from: folder or hub id of the tower that is to learn from the labels,
      where it is another that crops pictures otherwise.
    shard: examples in a file.
  """
  tower: str
  words: str
  source: dict[str, Any]
  how: str = "raw"
  layer: int = -1
  sign: float = -1.0
  n: int = 10
  threshold: float = 0.0
  templates: tuple[str, ...] = ("{}",)
  crop_from: str = ""
  shard: int = 1024

  def __post_init__(self) -> None:
    faults = []
    if self.how not in HOW:
      faults.append(f"how: {self.how!r} is none of {', '.join(HOW)}")
    if self.sign not in (-1, 1):
      faults.append(f"sign: {self.sign:g} is neither 1 nor -1")
    for name in ("n", "shard"):
      if getattr(self, name) < 1:
        faults.append(f"{name}: {getattr(self, name)} is below 1")
    if not self.templates:
      faults.append("templates: there is none")
    if faults:
      raise InputError("label: " + "; ".join(faults))


def manifest_of(plan: Plan, tower: Any, words: Sequence[str],
                examples: int) -> dict[str, Any]:
  """What is written beside the labels, and compared when a job goes on."""
  return {
      **{k: v for k, v in dataclasses.asdict(plan).items()
         if k != "words" and (k != "crop_from" or v)},
      "templates": list(plan.templates),
      "words": len(words), "words_sha256": digest(words),
      "tower_sha256": fingerprint(Path(tower.spec.path)),
      "crop": crop_of(tower.reader.processor, tower.config.image_size),
      "patches": tower.config.patches, "examples": examples,
      "shards": max(-(-examples // plan.shard), 1)}


def crop_of(processor: Any, size: int) -> dict[str, Any]:
  """How a picture becomes a tower's pixels, without what is done to colours.

  Labels are of the patches of that crop, so training must crop alike.
  """
  found: dict[str, Any] = {"image_size": size}
  given = {} if processor is None else processor.to_dict()
  for name in ("do_resize", "size", "do_center_crop", "crop_size", "resample"):
    if given.get(name) is not None:
      found[name] = json.loads(json.dumps(given[name], default=dict))
  return found


def fingerprint(folder: Path) -> str:
  """SHA-256 of a tower's weight files."""
  files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
  found = hashlib.sha256()
  for file in files:
    with file.open("rb") as stream:
      found.update(hashlib.file_digest(stream, "sha256").digest())
  return found.hexdigest()


def image_key(image: Any) -> tuple[bytes, bytes]:
  """(SHA-256 of an image's file, the file)."""
  data = image() if callable(image) else image
  if not isinstance(data, bytes):
    data = Path(data).read_bytes()
  return hashlib.sha256(data).digest(), data


# Told how many more images are done, and how many examples are left.
Progress = Callable[[int, int], None]


def label(plan: Plan, source: Any, tower: Any, folder: str | Path, *,
          batch: int = 32, mesh: Any = None, process: int = 0,
          processes: int = 1,
          progress: Progress = lambda images, left: None,
          ) -> dict[str, Any]:
  """Labels all images of a source, or goes on where it was stopped.

  Args:
    plan: what to make.
    source: of examples; `plan.source` names it.
    tower: `load_tower(plan.tower)`.
    folder: of the labels.
    batch: images at a time.
    mesh: over whose devices the word list is cut; the tower's.
    process: this one's number of `processes`; 0 writes the index, once all
      shards are there.
    progress: told at the start, after each batch and after each shard.

  Returns:
    The manifest; where this process finished the job also `images`,
    `unlabelled_share`, the share of patches without a label, and `unreadable`,
    what is wrong with each image that has none since it is broken.

  Raises:
    InputError: the folder has labels made with something else, an image file
      that is not there, or scores that are not numbers.
  """
  folder = Path(folder)
  if plan.crop_from:
    tower = tower.cropping_as(plan.crop_from)
  words = read_words(plan.words)
  manifest = manifest_of(plan, tower, words, len(source))
  _claim(folder, manifest, words)
  shards = manifest["shards"]
  todo = [s for s in range(process, shards, processes)
          if not (folder / store.shard_name(s, shards)).exists()]
  if todo:
    size = lambda shard: len(_examples(plan, source, shard))
    left = sum(map(size, todo))
    progress(0, left)
    find = _finder(plan, tower, words, folder, mesh)
    for shard in todo:
      _write_shard(plan, source, tower, folder, shard, shards, find, batch,
                   lambda images, done, left=left: progress(
                       images, left - done))
      left -= size(shard)
  if process == 0 and all((folder / store.shard_name(s, shards)).exists()
                          for s in range(shards)):
    manifest |= _finish(folder, manifest)
  return manifest


def _claim(folder: Path, manifest: dict[str, Any],
           words: Sequence[str]) -> None:
  """Marks a new folder as this job's, or checks that it is."""
  path = folder / store.MANIFEST
  if path.is_file():
    found = json.loads(path.read_text(encoding="utf-8"))
    other = [f"{k}: there {found.get(k)!r}, now {v!r}"
             for k, v in manifest.items() if found.get(k) != v]
    if other:
      raise InputError(f"{folder} holds labels made with something else:\n  "
                       + "\n  ".join(other))
    return
  folder.mkdir(parents=True, exist_ok=True)
  (folder / store.WORDS).write_text("\n".join(words) + "\n", encoding="utf-8")
  scratch = path.with_suffix(".writing")
  scratch.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n",
                     encoding="utf-8")
  scratch.replace(path)


Finder = Callable[[Any], tuple[np.ndarray, np.ndarray]]


def _finder(plan: Plan, tower: Any, words: Sequence[str], folder: Path,
            mesh: Any) -> Finder:
  """Pixels -> words i32[I,P,n] and scores f32[I,P,n]; -1, 0 where none."""
  if plan.n > len(words):
    raise InputError(f"label: n = {plan.n} words of a patch, from a list of "
                     f"{len(words)}")
  table = placed(_text_features(plan, tower, words, folder), mesh)
  best = jax.jit(lambda patches, table: top_words(
      patches, table, plan.n, plan.sign, mesh=mesh, count=len(words)))

  def find(pixels: Any) -> tuple[np.ndarray, np.ndarray]:
    patches = tower.patch_embeds(pixels, plan.how, layer=plan.layer)
    ids, scores = map(np.asarray, best(patches.astype(jnp.float32), table))
    if not np.isfinite(scores).all():
      raise InputError(f"{plan.tower} gives scores that are not numbers")
    keep = scores > plan.threshold
    return np.where(keep, ids, -1), np.where(keep, scores, 0)

  return find


def _text_features(plan: Plan, tower: Any, words: Sequence[str],
                   folder: Path) -> np.ndarray:
  """f32[Q,E] of the words, computed once a job and kept until it is done."""
  path = folder / _TEXT
  if path.is_file():
    return np.load(path)
  # Batches of one size, the last one padded, so that one shape is compiled.
  rows, table = 256, []
  for start in range(0, len(words), rows):
    part = list(words[start:start + rows])
    filled = part + part[:1] * (rows - len(part))
    table.append(np.asarray(tower.text(filled, plan.templates),
                            np.float32)[:len(part)])
  found = np.concatenate(table)
  scratch = folder / f"{os.getpid()}.{_TEXT}"  # another process may write too
  np.save(scratch, found)
  scratch.replace(path)
  return found


def _examples(plan: Plan, source: Any, shard: int) -> range:
  """Those of a shard."""
  return range(shard * plan.shard, min((shard + 1) * plan.shard, len(source)))


def _write_shard(plan: Plan, source: Any, tower: Any, folder: Path, shard: int,
                 shards: int, find: Finder, batch: int,
                 told: Callable[[int, int], None]) -> None:
  """One shard; `told` of each batch how many images, and examples so far."""
  from array_record.python import array_record_module as records

  examples = _examples(plan, source, shard)
  scratch = folder / f"{store.shard_name(shard, shards)}.writing"
  writer = records.ArrayRecordWriter(str(scratch), "group_size:1")
  keys, pictures = [], []

  def flush(done: int) -> None:
    if keys:
      # Filled up, so that one shape is compiled.
      filled = pictures + pictures[:1] * (batch - len(pictures))
      words, scores = find(tower.normalised(filled))
      for key, ids, values in zip(keys, words, scores):
        writer.write(store.encode(key, ids, values))
    told(len(keys), done)
    keys.clear()
    pictures.clear()

  for done, key, picture in _pictures(map(source.__getitem__, examples),
                                      tower.reader):
    if isinstance(picture, str):
      writer.write(store.encode_unreadable(picture))
      continue
    keys.append(key)
    pictures.append(picture)
    if len(keys) == batch:
      flush(done)
  flush(len(examples))
  writer.close()
  scratch.replace(folder / store.shard_name(shard, shards))


def _pictures(examples: Iterable[Example], reader: ImageReader,
              ) -> Iterator[tuple[int, bytes, Any]]:
  """(examples before it, key, what is read or why it cannot be), each image
  once, in order."""
  seen: set[bytes] = set()
  for done, example in enumerate(examples):
    for slot, image in enumerate(example["images"]):
      try:
        key, data = image_key(image)
      except OSError as error:
        raise InputError(f"{example['origin']}: {error}") from error
      if key in seen:
        continue
      seen.add(key)
      try:
        yield done, key, reader(data)
      except BadImage as error:
        yield done, key, f"{example['origin']}: image {slot}: {error}"


def _finish(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
  """Writes the index and counts what there is."""
  from array_record.python import array_record_data_source as records

  places: dict[bytes, tuple[int, int]] = {}
  unreadable = []
  empty = patches = 0
  for shard in range(manifest["shards"]):
    source = records.ArrayRecordDataSource(
        str(folder / store.shard_name(shard, manifest["shards"])))
    for place in range(len(source)):
      record = source.__getitem__(place)
      if reason := store.unreadable(record):
        unreadable.append(reason)
        continue
      key, words, _ = store.decode(record, manifest["patches"], manifest["n"])
      if key in places:
        continue  # the same image in an earlier shard
      places[key] = shard, place
      empty += int((words < 0).all(-1).sum())
      patches += len(words)
  store.write_index(folder, places)
  (folder / _TEXT).unlink(missing_ok=True)
  return {"images": len(places),
          "unlabelled_share": empty / max(patches, 1),
          "unreadable": unreadable}
