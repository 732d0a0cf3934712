"""C12: image files to pixels, beside Pillow's decoding and resizing."""

import functools
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

from align_jax.bench import Options
from align_jax.bench.figure import Figure
from align_jax.bench.timing import paired
from align_jax.data.english import documents
from align_jax.data.images import ImageReader
from align_jax.errors import InputError

SIDE = 384


def run(options: Options) -> Iterator[Figure]:
  """Images a second of one core / Pillow's whole decode and bicubic resize."""
  exact = ImageReader(None, SIDE)
  scaled = ImageReader(None, SIDE, scaled_decode=True)
  for key, what, file, goal in (
      ("c12_photo", "a photo of 1280 x 854, quality 90", photo(), 2),
      ("c12_page", "a page of 1700 x 2200, quality 85", page(), 4.5)):
    times = paired({"pillow": functools.partial(_pillow, file),
                    "ours": functools.partial(scaled, file)}, options.rounds)
    shapes = f"{what}, to {SIDE} x {SIDE}"
    yield Figure(key, "images/s with data.scaled_decode / Pillow's",
                 shapes=shapes, dtype="uint8", goal=goal, higher=True,
                 **times.ratio("pillow", "ours"))
    off = np.abs(exact(file)[0].astype(int) - _pillow(file).astype(int)).max()
    yield Figure(f"{key}_exact", "the largest difference from Pillow's pixels "
                 "without it", float(off), shapes=shapes, dtype="uint8",
                 unit="levels of 255", goal=2)


def _pillow(file: bytes) -> np.ndarray:
  picture = Image.open(io.BytesIO(file)).convert("RGB")
  return np.asarray(picture.resize((SIDE, SIDE), Image.BICUBIC))


def photo() -> bytes:
  """One of scikit-learn's, twice as large.

  Raises:
    InputError: scikit-learn is not installed.
  """
  try:
    from sklearn.datasets import load_sample_image
  except ImportError as error:
    raise InputError("the photo is scikit-learn's; install "
                     "align-jax[test]") from error
  picture = Image.fromarray(load_sample_image("flower.jpg"))
  return _jpeg(picture.resize((1280, 854), Image.BICUBIC), 90)


def page() -> bytes:
  """A page of Python's manual at 200 dots an inch."""
  words = " ".join(documents("train").values()).split()
  picture = Image.new("RGB", (1700, 2200), "white")
  draw = ImageDraw.Draw(picture)
  for i, y in enumerate(range(200, 2000, 46)):
    draw.text((200, y), " ".join(words[13 * i:13 * (i + 1)]), fill="black",
              font_size=30)
  return _jpeg(picture, 85)


def _jpeg(picture: Image.Image, quality: int) -> bytes:
  file = io.BytesIO()
  picture.save(file, "JPEG", quality=quality)
  return file.getvalue()
