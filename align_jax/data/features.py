"""A frozen tower's features, computed once and read by every run after it.

  manifest.json   the tower, its layer and its crop, and how many images
  features.npy    f32[I,P,C]
  keys.json       of each image: its name, or the SHA-256 of its file
  digests.json    name of a named image -> SHA-256 of its file

Runs with `data.features` set to such a folder read features where they would
read pixels: `batch["images"]` is then f32[B,N,P,C], and the tower is not run.
What is trained on them is what would be trained on pixels, since a frozen
tower draws nothing.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.data.example import Named, Source
from align_jax.data.images import BadImage
from align_jax.errors import InputError

MANIFEST, TABLE = "manifest.json", "features.npy"
KEYS, DIGESTS = "keys.json", "digests.json"


def key_of(image: Any) -> str:
  """An image's name, or the SHA-256 of its encoded bytes.

  Raises:
    InputError: neither a name nor a file.
  """
  if isinstance(image, Named):
    return image.name
  image = image() if callable(image) else image
  if isinstance(image, str | Path):
    image = Path(image).read_bytes()
  if not isinstance(image, bytes):
    raise InputError(f"features are kept of files and of named images, not of "
                     f"a {type(image).__name__}")
  return hashlib.sha256(image).hexdigest()


def about(spec: Any, layer: int, class_token: bool,
          size: int) -> dict[str, Any]:
  """What features depend on, beside the images."""
  from align_jax.hub.pretrained import load_processor
  from align_jax.labels.job import crop_of, fingerprint
  return {"tower_sha256": fingerprint(Path(spec.path)), "layer": layer,
          "class_token": class_token,
          "crop": crop_of(load_processor(spec), size)}


def write(weights: str, sources: Sequence[Source], folder: str | Path, *,
          layer: int = -1, class_token: bool = False, batch: int = 64,
          progress: Callable[[int], None] = lambda images: None,
          ) -> dict[str, Any]:
  """Computes the features of all images of some sources, each once.

  Args:
    weights: of the tower, as `model.tower.weights`.
    sources: of examples.
    folder: to be made.
    layer: as `model.tower.layer`.
    class_token: as `model.tower.class_token`.
    batch: images at a time.
    progress: told how many more are done.

  Returns:
    The manifest.

  Raises:
    InputError: the folder is there, or there is no image.
  """
  from align_jax.hub.tower_face import load_tower

  folder = Path(folder)
  if (folder / MANIFEST).exists():
    raise InputError(f"{folder} holds features already; name another folder")
  folder.mkdir(parents=True, exist_ok=True)
  tower = load_tower(weights, layer=layer, with_class_token=class_token)
  images = {}
  for source in sources:
    for index in range(len(source)):
      for image in source[index]["images"]:
        images.setdefault(key_of(image), image)
  if not images:
    raise InputError("the sources have no image")
  keys, shape, digests = list(images), None, {}
  for at in range(0, len(keys), batch):
    part = [images[key] for key in keys[at:at + batch]]
    files = [i() if callable(i) else i for i in part]
    digests |= {i.name: hashlib.sha256(file).hexdigest()
                for i, file in zip(part, files) if isinstance(i, Named)}
    filled = files + files[:1] * (batch - len(files))
    found = np.asarray(tower(filled), np.float32)[:len(part)]
    if shape is None:
      shape = (len(keys), *found.shape[1:])
      table = np.lib.format.open_memmap(
          folder / TABLE, "w+", np.float32, shape)
    table[at:at + len(part)] = found
    progress(len(part))
  table.flush()
  (folder / KEYS).write_text(json.dumps(keys), encoding="utf-8")
  (folder / DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
  manifest = about(tower.spec, layer, class_token,
                   tower.config.image_size) | {
      "tower": weights, "images": len(keys), "shape": list(shape)}
  (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n",
                                 encoding="utf-8")
  return manifest


class FeatureReader:
  """In the place of an `ImageReader`: an image -> its features.

  Attributes:
    shape: of what it gives, [P,C].
  """

  def __init__(self, folder: str | Path, tower: Any, spec: Any):
    """Opens a folder that `write` made.

    Args:
      folder: of the features.
      tower: the run's `model.tower` config.
      spec: of its weights; None where it has none.

    Raises:
      InputError: no features there, or of another tower, layer or crop.
    """
    self.folder = Path(folder)
    if not (self.folder / MANIFEST).is_file():
      raise InputError(f"data.features: no features in {folder}; "
                       "`align-jax data features` makes them")
    if spec is None:
      raise InputError("data.features: a tower without weights of its own is "
                       "new in each run, so its features cannot be kept")
    made = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
    own = about(spec, tower.layer, tower.class_token, _side(spec))
    other = [f"{k}: there {made.get(k)!r}, in this run {v!r}"
             for k, v in own.items() if made.get(k) != v]
    if other:
      raise InputError(f"data.features: {folder} holds features of another "
                       "tower or crop:\n  " + "\n  ".join(other))
    self.shape = tuple(made["shape"][1:])

  @functools.cached_property
  def _rows(self) -> dict[str, int]:
    keys = json.loads((self.folder / KEYS).read_text(encoding="utf-8"))
    return {key: row for row, key in enumerate(keys)}

  @functools.cached_property
  def _table(self) -> np.ndarray:
    return np.load(self.folder / TABLE, mmap_mode="r")

  def __call__(self, image: Any) -> np.ndarray:
    """Features f32[P,C].

    Raises:
      BadImage: there are none of this image.
    """
    row = self._rows.get(key := key_of(image))
    if row is None:
      raise BadImage(f"image {key!r} has no features in {self.folder}, which "
                     "were made of other images")
    return self._table[row]

  def places(self, images: Iterable[Any], tokens: int, frame: Any,
             ) -> tuple[list[Any], None]:
    """The images, each of which is one slot."""
    del tokens, frame
    return list(images), None

  def slots(self, images: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Features f32[slots,P,C] of images, and boxes that nothing reads."""
    found = [self(image) for image in images]
    return (np.stack(found) if found else np.zeros((0, *self.shape), "f4"),
            np.zeros((len(found), 4), np.int32))


def _side(spec: Any) -> int:
  config = getattr(spec.config, "tower", spec.config)
  return config.image_size
