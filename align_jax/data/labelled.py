"""A source's examples with the labels of their images' patches."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.data.example import BadSample, Example
from align_jax.errors import InputError
from align_jax.labels.job import image_key
from align_jax.labels.store import Labels
from align_jax.objectives.patch_labels import FIELDS


class Labelled:
  """Another source, whose images were labelled by `align-jax label`.

  Attributes:
    of: the source whose images these are.
    labels: what is known of them.
    images: I, how many images of a sample have room for labels.
    digests: a file {name: SHA-256} of named images, as `align-jax data
      features` writes it, so that they need not be made to be known.
  """

  def __init__(self, source: dict[str, Any], labels: str, images: int = 1,
               digests: str = ""):
    from align_jax.data import SOURCES
    self.of = SOURCES.get(source["kind"])(**source.get("options", {}))
    self._digests = {} if not digests else {
        name: bytes.fromhex(digest) for name, digest in json.loads(
            Path(digests).read_text(encoding="utf-8")).items()}
    self.labels, self.images = Labels(labels), images
    if images < 1:
      raise InputError(f"labelled: images is {images} (at least 1)")

  def __len__(self) -> int:
    return len(self.of)

  def __getitem__(self, index: int) -> Example:
    """The example with `sea_words` i32 and `sea_scores` f32, [I,P,n].

    Raises:
      BadSample: more images than I, or one that was not labelled.
    """
    example = self.of[index]
    origin, images = example["origin"], example["images"]
    if len(images) > self.images:
      raise BadSample(origin, f"{len(images)} images, and labels for at most "
                      f"{self.images} (option `images` of source labelled)")
    shape = (self.images, self.labels.patches, self.labels.n)
    words = np.full(shape, -1, np.int32)
    scores = np.zeros(shape, np.float32)
    for slot, image in enumerate(images):
      try:
        key = self._digests.get(getattr(image, "name", None)) or (
            image_key(image)[0])
      except OSError as error:
        raise BadSample(origin, f"image {slot}: {error}") from error
      if key not in self.labels:
        raise BadSample(
            origin, f"image {slot} has no labels in {self.labels.folder}, "
            "which were made of other images")
      words[slot], scores[slot] = self.labels[key]
    extras = dict(zip(FIELDS, (words, scores)))
    return example | {"extras": example.get("extras", {}) | extras}
