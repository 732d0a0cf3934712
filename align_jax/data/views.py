"""A source's images from several views: mirrored, and shifted a little.

For training a tower from scratch on few images. What an example says must
hold for every view of its image, as "a blue circle" does and "on the left"
does not.
"""

import io
import random
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from align_jax.data.example import Example
from align_jax.data.images import BadImage
from align_jax.errors import InputError


class Views:
  """`copies` views of each example of another source.

  Example i is view i // len(of) of example i % len(of). View 0 is the image
  as it is; every other is drawn by (seed, i) alone.

  Attributes:
    of: the source whose images these are.
    copies: views of each example.
    shift: at most so many pixels each way; the border's pixels are repeated.
    mirror: whether half of the views are mirrored, left to right.
  """

  def __init__(self, source: dict[str, Any], copies: int = 8, shift: int = 0,
               mirror: bool = False, seed: int = 0):
    from align_jax.data import SOURCES
    if copies < 1 or shift < 0:
      raise InputError(f"views: copies is {copies} (at least 1), shift is "
                       f"{shift} (at least 0)")
    self.of = SOURCES.get(source["kind"])(**source.get("options", {}))
    self.copies, self.shift, self.mirror = copies, shift, mirror
    self.seed = seed

  def __len__(self) -> int:
    return self.copies * len(self.of)

  def __getitem__(self, index: int) -> Example:
    view, original = divmod(index, len(self.of))
    example = self.of[original]
    if not view:
      return example
    key = f"{self.seed}/{index}"
    return example | {
        "id": f"{example['id']}/view{view}",
        "images": [partial(self.view, image, f"{key}/{slot}")
                   for slot, image in enumerate(example["images"])]}

  def view(self, image: Any, key: str) -> Image.Image:
    """The view that `key` draws of an image.

    Raises:
      BadImage: the image is broken.
    """
    file = image() if callable(image) else image
    try:
      picture = Image.open(
          io.BytesIO(file) if isinstance(file, bytes) else file)
      picture = picture.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
      raise BadImage(f"image is broken: {error}") from error
    draw = random.Random(key)
    if draw.random() < 0.5 and self.mirror:
      picture = ImageOps.mirror(picture)
    down, right = (draw.randint(-self.shift, self.shift) for _ in range(2))
    if not (down or right):
      return picture
    pixels, far = np.asarray(picture), self.shift
    wide = np.pad(pixels, ((far, far), (far, far), (0, 0)), mode="edge")
    height, width = pixels.shape[:2]
    return Image.fromarray(wide[far - down:far - down + height,
                                far - right:far - right + width])
