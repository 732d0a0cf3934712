"""An image as several tiles, and the order in which their tokens are read.

A strategy cuts a picture into tiles of the tower's size, each of which takes
an image slot, and says where each of its visual tokens stands: padding that is
not read and newlines between rows are only indices into the row's bank.

  anyres  LLaVA-NeXT: the whole image small, then a grid of tiles row by row
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from align_jax.errors import InputError
from align_jax.registry import Registry

TILINGS = Registry("tiling", {"anyres": "align_jax.data.tiling:Anyres"})

# The connector's special token 0, in the bank's way of counting.
_NEWLINE = -2


class Places(NamedTuple):
  """What one image takes in a sample.

  Attributes:
    slots: tiles.
    visual: i32[n], tile * T + t for a visual token, counted from the image's
      first slot; -2 - x for the connector's special token x.
  """
  slots: int
  visual: np.ndarray


class Tiling(Protocol):
  """A strategy."""

  def places(self, height: int, width: int, side: int,
             across: int) -> Places:
    """Of an image of that size.

    Args:
      height: of the image, pixels.
      width: likewise.
      side: H = W of a tile, pixels.
      across: patches along a side of a tile, which are tokens.
    """

  def tiles(self, picture: Image.Image, side: int) -> np.ndarray:
    """u8[slots,H,W,3], the first the whole image."""


class Anyres:
  """LLaVA-NeXT's: the pinpoint that keeps most of the image, without padding.

  Source: transformers, models/llava_next (image processor and
  `pack_image_features`), of which it gives the pixels and the tokens.

  Attributes:
    grid: pinpoints (height, width), multiples of a tile's side.
  """

  def __init__(self, grid: Sequence[Sequence[int]]):
    self.grid = [(int(h), int(w)) for h, w in grid]
    if not self.grid:
      raise InputError("anyres needs at least one pinpoint (height, width)")

  def best(self, height: int, width: int) -> tuple[int, int]:
    """The pinpoint with most of the image's pixels, then with least waste."""
    def worth(point: tuple[int, int]) -> tuple[int, int]:
      scale = min(point[1] / width, point[0] / height)
      kept = min(int(width * scale) * int(height * scale), width * height)
      return kept, kept - point[0] * point[1]

    return max(self.grid, key=worth)  # the first of equals

  def places(self, height: int, width: int, side: int,
             across: int) -> Places:
    """See `Tiling`; a newline, special token 0, ends each row of patches."""
    high, wide = self.best(height, width)
    down, right = high // side, wide // side
    y = np.arange(down * across)[:, None]
    x = np.arange(right * across)[None]
    tile = 1 + y // across * right + x // across
    index = tile * across**2 + y % across * across + x % across
    # Patches of pure padding go, on both sides alike.
    if width / height > index.shape[1] / index.shape[0]:
      kept = int(round(height * (index.shape[1] / width), 7))
      pad = (index.shape[0] - kept) // 2
      index = index[pad:index.shape[0] - pad]
    else:
      kept = int(round(width * (index.shape[0] / height), 7))
      pad = (index.shape[1] - kept) // 2
      index = index[:, pad:index.shape[1] - pad]
    rows = np.pad(index, [(0, 0), (0, 1)], constant_values=_NEWLINE)
    visual = np.concatenate([np.arange(across**2), rows.reshape(-1)])
    return Places(1 + down * right, visual.astype(np.int32))

  def tiles(self, picture: Image.Image, side: int) -> np.ndarray:
    """See `Tiling`; the grid is the image, unstretched, on black."""
    width, height = picture.size
    high, wide = self.best(height, width)
    scale_w, scale_h = wide / width, high / height
    if scale_w < scale_h:
      size = (wide, min(math.ceil(height * scale_w), high))
    else:
      size = (min(math.ceil(width * scale_h), wide), high)
    canvas = Image.new("RGB", (wide, high))
    canvas.paste(picture.resize(size, Image.BICUBIC),
                 ((wide - size[0]) // 2, (high - size[1]) // 2))
    grid = np.asarray(canvas).reshape(
        high // side, side, wide // side, side, 3)
    grid = grid.transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)
    whole = np.asarray(picture.resize((side, side), Image.BICUBIC))
    return np.concatenate([whole[None], grid])
