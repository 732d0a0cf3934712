"""An image file as the pixels that a tower wants, uint8.

Resizing and cropping happen here, on the host, by transformers' PIL
processors. Rescaling and normalising happen on the device
(`towers/pixels.py`), so that a quarter of the bytes travel.
"""

import hashlib
import io
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from align_jax.data.tiling import Frame, Places, Tiling

# What a user may give for one image; an array is u8[H,W,3].
ImageLike = str | Path | bytes | np.ndarray | Image.Image


class BadImage(Exception):
  """An image that cannot be used; the message says why."""


def listed(images: Any) -> list[Any]:
  """None, one image or several, as a list; u8[B,H,W,3] is B images."""
  if images is None:
    return []
  one = isinstance(images, str | Path | bytes | bytearray | Image.Image)
  if one or callable(images) or getattr(images, "ndim", 4) < 4:
    return [images]
  return list(images)


class ImageReader:
  """Reads, checks, resizes and crops.

  Attributes:
    processor: a transformers image processor of the PIL kind (`...Pil`), or
      None for a plain bicubic resize.
    size: H = W of what comes out.
    max_pixels: an image of more pixels is refused before it is decoded.
    tiling: how an image is cut into tiles; None: it is one.
    scaled_decode: JPEG files of twice that size or more are decoded at a
      half, a quarter or an eighth of theirs, which takes less than half the
      time of decoding and resizing the whole.
  """

  def __init__(self, processor: Any, size: int, max_pixels: int = 50_000_000,
               tiling: Tiling | None = None, scaled_decode: bool = False):
    self.processor = processor
    self.size = size
    self.max_pixels = max_pixels
    self.tiling = tiling
    self.scaled_decode = scaled_decode

  def __call__(self, image: Any) -> tuple[np.ndarray, np.ndarray]:
    """An image as one slot: pixels u8[H,W,3] and their valid box.

    The box is i32[4] = (y0, x0, y1, x1).

    Args:
      image: a path, encoded bytes, a PIL image, an array u8[H,W,3], or a
        callable that gives one of these.

    Raises:
      BadImage: missing, broken or too large.
    """
    picture = self.open(image)
    if self.processor is None:
      pixels = np.asarray(picture.resize((self.size,) * 2, Image.BICUBIC))
    else:
      pixels = self.processor(
          picture, do_rescale=False, do_normalize=False, return_tensors="np",
      )["pixel_values"][0].transpose(1, 2, 0)
    if pixels.shape != (self.size, self.size, 3):
      raise ValueError(
          f"the image processor gives {pixels.shape}, the tower wants "
          f"{(self.size, self.size, 3)}: its config and the tower's disagree")
    box = np.asarray([0, 0, self.size, self.size], np.int32)
    return np.ascontiguousarray(pixels, np.uint8), box

  def places(self, images: Iterable[Any], tokens: int,
             frame: Frame) -> tuple[list[Any], list[Places] | None]:
    """Images, opened where that was needed, and what each takes in a sample.

    Args:
      images: of the sample.
      tokens: T.
      frame: the connector's special tokens.

    Returns:
      (images, places); no places where each image is one slot.

    Raises:
      BadImage: one of them, where there is a tiling.
    """
    if self.tiling is None:
      return list(images), None
    opened = [self.open(image) for image in images]
    return opened, [self.tiling.places(p.height, p.width, self.size, tokens,
                                       frame) for p in opened]

  def slots(self, images: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels u8[slots,H,W,3] of images one after the other, and their boxes.

    Raises:
      BadImage: one of them.
    """
    parts = [(np.zeros((0, self.size, self.size, 3), np.uint8),
              np.zeros((0, 4), np.int32))]
    for image in images:
      if self.tiling is None:
        pixels, box = self(image)
        parts.append((pixels[None], box[None]))
      else:
        parts.append(self.tiling.tiles(self.open(image), self.size))
    pixels, boxes = (np.concatenate(part) for part in zip(*parts))
    return pixels, boxes

  def open(self, image: Any) -> Image.Image:
    """A PIL image in RGB, upright. Raises BadImage."""
    image = image() if callable(image) else image
    name = f"image {str(image)!r}" if isinstance(image, (str, Path)) else (
        "image")
    try:
      with warnings.catch_warnings():
        # Pillow warns of large images; max_pixels is the rule here.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        if isinstance(image, (bytes, bytearray)):
          picture = Image.open(io.BytesIO(image))
        elif isinstance(image, Image.Image):
          picture = image
        elif hasattr(image, "dtype"):
          picture = _from_array(np.asarray(image))
        else:
          picture = Image.open(Path(image))
      width, height = picture.size
      if width * height > self.max_pixels:
        raise BadImage(f"{name} has {width} x {height} = {width * height:,} "
                       f"pixels, more than max_pixels = {self.max_pixels:,}")
      if self.scaled_decode and picture is not image:  # not the caller's own
        picture.draft(None, (self.size, self.size))
      return _rgb(ImageOps.exif_transpose(picture), name)
    except FileNotFoundError as error:
      raise BadImage(f"{name} does not exist") from error
    except Image.DecompressionBombError as error:
      raise BadImage(f"{name} is too large: {error}") from error
    except UnidentifiedImageError as error:
      raise BadImage(f"{name} is not in a known image format") from error
    except (OSError, SyntaxError, ValueError) as error:
      # Pillow's decoders raise all of these on broken files.
      raise BadImage(f"{name} is broken: {error}") from error


def _from_array(pixels: np.ndarray) -> Image.Image:
  if pixels.dtype != np.uint8 or pixels.shape[2:] != (3,):
    raise BadImage(f"an image given as an array is u8[H,W,3], not "
                   f"{pixels.dtype}{list(pixels.shape)}")
  return Image.fromarray(pixels)


def _rgb(picture: Image.Image, name: str) -> Image.Image:
  """Any kind of picture in RGB; transparency is dropped."""
  if picture.mode.startswith("I;16"):  # convert() would clip at 255 of 65535
    picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
  if picture.mode in ("I", "F"):
    raise BadImage(f"{name} is of mode {picture.mode!r}, whose values have no "
                   "known range")
  return picture.convert("RGB")


def image_hashes(examples: Iterable[Mapping[str, Any]]) -> dict[str, str]:
  """SHA-256 of every image file of some examples -> where it came from.

  Args:
    examples: of a source; images are paths, bytes or callables of either.
  """
  found: dict[str, str] = {}
  for example in examples:
    for image in example["images"]:
      data = image() if callable(image) else image
      if not isinstance(data, bytes):
        data = Path(data).read_bytes()
      found.setdefault(hashlib.sha256(data).hexdigest(), example["origin"])
  return dict(sorted(found.items(), key=lambda item: item[1]))
