"""Image and caption shards in the webdataset form, such as CC12M's.

  cc12m-train-0000.tar:  000000000.jpg  000000000.txt  000000000.json
                         000000001.jpg  000000001.txt  ...

Source of the layout: webdataset/webdataset (docs/webdataset.md: files that
share everything before the first dot of their base name are one sample, and
lie side by side) and rom1504/img2dataset (README, output format
"webdataset"), which makes CC12M shards: a jpg, the caption as txt, and json
with url and sizes.

Samples are found by the tars' headers once; images are read in place.
"""

import glob
import logging
import tarfile
import threading
from functools import partial
from pathlib import Path

import numpy as np

from align_jax.data.example import PLACEHOLDER, BadSample, Example
from align_jax.errors import InputError

log = logging.getLogger(__name__)

IMAGES = ("jpg", "jpeg", "png", "webp")


class WebDataset:
  """Captions of images in tar files.

  Attributes:
    paths: the shards, in order of their names.
    prompt: what the user says beside the image; "" for the image alone.
    skipped: samples without an image or without a caption, by reason; such
      as downloads leave behind. They are no examples.
  """

  def __init__(self, path: str, prompt: str = ""):
    self.paths = [Path(p) for p in sorted(glob.glob(
        str(Path(path).expanduser())))]
    if not self.paths:
      raise InputError(f"no shard matches {path!r}")
    self.prompt = prompt
    self.skipped = {"no image": 0, "no caption": 0}
    self._open = threading.local()
    self._keys: list[str] = []
    places = []
    for shard, file in enumerate(self.paths):
      for key, parts in _samples(file):
        image = next((parts[e] for e in IMAGES if e in parts), None)
        if image is None or "txt" not in parts:
          self.skipped["no image" if image is None else "no caption"] += 1
          continue
        places.append((shard, *image, *parts["txt"]))
        self._keys.append(key)
    for reason, count in self.skipped.items():
      if count:
        log.warning("webdataset: %d samples of %s have %s and are left out",
                    count, path, reason)
    # Five numbers a sample: shard, offset and size of image and caption.
    self._places = np.asarray(places, np.int64).reshape(-1, 5)

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> Example:
    """An image with its caption.

    Raises:
      BadSample: the caption is empty or no UTF-8.
    """
    shard, image, image_size, text, text_size = map(
        int, self._places[index])
    origin = f"{self.paths[shard]}:{self._keys[index]}"
    try:
      caption = self._read(shard, text, text_size).decode().strip()
    except UnicodeDecodeError as error:
      raise BadSample(origin, f"the caption: {error}") from error
    if not caption:
      raise BadSample(origin, "the caption is empty")
    asked = PLACEHOLDER + ("\n" + self.prompt if self.prompt else "")
    return {
        "id": f"{self.paths[shard].stem}/{self._keys[index]}",
        "origin": origin, "conversation": [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": caption}],
        "images": [partial(self._read, shard, image, image_size)]}

  def _read(self, shard: int, start: int, size: int) -> bytes:
    # Files of each thread are its own: others would move their place.
    files = self._open.__dict__.setdefault("files", {})
    if shard not in files:
      if len(files) >= 16:
        files.pop(next(iter(files))).close()
      files[shard] = self.paths[shard].open("rb")
    files[shard].seek(start)
    return files[shard].read(size)


def _samples(path: Path) -> list[tuple[str, dict[str, tuple[int, int]]]]:
  """(key, {extension: (offset, size)}) of a tar, in order.

  Raises:
    InputError: no tar, a compressed one, one that ends early, or a key that
      comes back later.
  """
  found: list[tuple[str, dict[str, tuple[int, int]]]] = []
  seen = set()
  try:
    with tarfile.open(path, "r:") as tar:
      for member in tar:
        folder, _, base = member.name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not member.isfile() or not dot or not stem:
          continue
        key = f"{folder}/{stem}" if folder else stem
        if not found or found[-1][0] != key:
          if key in seen:
            raise InputError(f"{path}: the files of sample {key!r} do not "
                             "lie side by side")
          seen.add(key)
          found.append((key, {}))
        found[-1][1][extension.lower()] = (member.offset_data, member.size)
      # A tar ends in blocks of zeros. One that was cut at a header is read as
      # if it ended there.
      end = tar.offset
    with path.open("rb") as file:
      file.seek(end)
      block = file.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
      raise InputError(f"{path} ends early, after {len(found)} samples: it "
                       f"has no end-of-archive block at byte {end:,}")
  except (tarfile.TarError, OSError) as error:
    raise InputError(f"{path}: no uncompressed tar: {error}") from error
  return found
