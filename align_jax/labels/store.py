"""A folder of labels, by image.

  manifest.json     what they were made with; see `job.Plan`
  words.txt         the word list, one a line
  labels-00000-of-00004.array_record
  index.npz         where each image is; written last, so it marks the end

A record is an image's SHA-256 (of its file), its words i32[P,n] and their
scores f16[P,n], -1 and 0 where a patch has fewer than n. Of an image that
could not be read it is 32 zeros and the reason.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.errors import InputError

MANIFEST, WORDS, INDEX = "manifest.json", "words.txt", "index.npz"
_KEY = 32  # bytes of a SHA-256


def shard_name(shard: int, shards: int) -> str:
  return f"labels-{shard:05}-of-{shards:05}.array_record"


def encode(key: bytes, words: np.ndarray, scores: np.ndarray) -> bytes:
  """A record of words i32[P,n] and scores f[P,n]."""
  return (key + np.ascontiguousarray(words, "<i4").tobytes()
          + np.ascontiguousarray(scores, "<f2").tobytes())


def decode(record: bytes, patches: int,
           n: int) -> tuple[bytes, np.ndarray, np.ndarray]:
  """(key, words i32[P,n], scores f32[P,n]) of a record."""
  cells = patches * n
  words = np.frombuffer(record, "<i4", cells, _KEY)
  scores = np.frombuffer(record, "<f2", cells, _KEY + 4 * cells)
  return (record[:_KEY], words.reshape(patches, n).astype(np.int32),
          scores.reshape(patches, n).astype(np.float32))


def encode_unreadable(reason: str) -> bytes:
  """The record of an image that could not be read."""
  return bytes(_KEY) + reason.encode()


def unreadable(record: bytes) -> str:
  """Why its image could not be read; "" of a record that has labels."""
  return "" if any(record[:_KEY]) else record[_KEY:].decode()


def write_index(folder: Path, keys: Mapping[bytes, tuple[int, int]]) -> None:
  """Where each image is: key -> (shard, place in it)."""
  ordered = sorted(keys)
  at = np.asarray([keys[k] for k in ordered], np.int64).reshape(-1, 2)
  scratch = folder / f"{INDEX}.writing.npz"
  np.savez(scratch, keys=np.frombuffer(
      b"".join(ordered), np.uint8).reshape(-1, _KEY), at=at)
  scratch.replace(folder / INDEX)


def read_manifest(folder: str | Path) -> dict[str, Any]:
  """What labels were made with.

  Raises:
    InputError: no labels there, or their job is not finished.
  """
  folder = Path(folder)
  if not (folder / MANIFEST).is_file():
    raise InputError(f"no labels in {folder}: it has no {MANIFEST}")
  if not (folder / INDEX).is_file():
    raise InputError(f"the labels in {folder} are not finished; give "
                     "`align-jax label` the same command again")
  return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


class Labels:
  """Finished labels, read at random.

  Attributes:
    manifest: what they were made with.
    words_file: the word list.
    patches: P of an image.
    n: labels of a patch.
  """

  def __init__(self, folder: str | Path):
    from array_record.python import array_record_data_source as records

    folder = Path(folder)
    self.folder, self.manifest = folder, read_manifest(folder)
    self.words_file = folder / WORDS
    self.patches, self.n = self.manifest["patches"], self.manifest["n"]
    with np.load(folder / INDEX) as index:
      keys, at = index["keys"], index["at"]
    self._place = {key.tobytes(): tuple(place)
                   for key, place in zip(keys, at.tolist())}
    shards = self.manifest["shards"]
    self._shards = [records.ArrayRecordDataSource(
        str(folder / shard_name(i, shards))) for i in range(shards)]

  def __len__(self) -> int:
    return len(self._place)

  def keys(self) -> list[bytes]:
    """SHA-256 of every image, in order."""
    return list(self._place)

  def __contains__(self, key: bytes) -> bool:
    return key in self._place

  def __getitem__(self, key: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Words i32[P,n] and scores f32[P,n] of the image with this SHA-256.

    Raises:
      KeyError: it has no labels.
    """
    shard, place = self._place[key]
    found, words, scores = decode(
        self._shards[shard].__getitem__(place), self.patches, self.n)
    if found != key:
      raise InputError(f"{self.folder}: {INDEX} and the records disagree; "
                       "make the labels anew")
    return words, scores


def read_words(path: str | Path) -> list[str]:
  """A word list: UTF-8, one word or phrase a line, in order.

  Raises:
    InputError: no such file, an empty list, an empty line or a word twice;
      all faults together.
  """
  path = Path(path)
  if not path.is_file():
    raise InputError(f"no word list {path}")
  words = path.read_text(encoding="utf-8").splitlines()
  seen: dict[str, int] = {}
  faults = []
  for line, word in enumerate(words, 1):
    if not word.strip():
      faults.append(f"{path}:{line}: empty")
    elif seen.setdefault(word, line) != line:
      faults.append(f"{path}:{line}: {word!r} is on line {seen[word]} too")
  if not words:
    faults.append(f"{path}: the word list is empty")
  if faults:
    more = len(faults) - 20
    raise InputError("\n".join(
        faults[:20] + ([f"... and {more} more"] if more > 0 else [])))
  return words


def digest(words: Sequence[str]) -> str:
  """SHA-256 of a word list."""
  return hashlib.sha256("\n".join(words).encode()).hexdigest()
