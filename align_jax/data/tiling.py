"""An image as several tiles, and the order in which their tokens are read.

A strategy cuts a picture into tiles of the tower's size, each of which takes
an image slot, and says where each of its visual tokens stands: padding that is
not read, newlines between rows and marks between tiles are only indices into
the row's bank. A config names one of `data.TILINGS`, `data.tiling = dict(kind=,
options=)`.

  anyres    LLaVA-NeXT: an unstretched image on a grid of tiles
  canvas    Ovis2 in transformers: the image stretched over a grid of tiles
  coverage  Ovis 1.6: as few tiles as show nine tenths of the image
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image


class Frame(NamedTuple):
  """Numbers of special tokens that stand around what an image shows.

  Attributes:
    before: an image.
    whole: behind the whole image, small where there are tiles.
    column: between two tiles of a row.
    row: between two rows of tiles.
    newline: behind each row of patches of a grid.
    after: an image.
  """
  before: tuple[int, ...] = ()
  whole: tuple[int, ...] = ()
  column: tuple[int, ...] = ()
  row: tuple[int, ...] = ()
  newline: tuple[int, ...] = ()
  after: tuple[int, ...] = ()

  def shifted(self, by: int) -> "Frame":
    """The same where `by` other special tokens come first."""
    return Frame(*(tuple(x + by for x in part) for part in self))


NO_FRAME = Frame()


def special(numbers: Sequence[int]) -> np.ndarray:
  """Special tokens in the bank's way of counting, i32[n]."""
  return -2 - np.asarray(numbers, np.int32)


class Places(NamedTuple):
  """What one image takes in a sample.

  Attributes:
    slots: tiles.
    visual: i32[n], tile * T + t for a visual token, counted from the image's
      first slot; -2 - x for the connector's special token x. What stands
      before and after every image is not among them.
  """
  slots: int
  visual: np.ndarray


def uncut(tokens: int, frame: Frame) -> Places:
  """Of an image that is not cut: one slot of T tokens."""
  return Places(1, np.concatenate(
      [np.arange(tokens, dtype=np.int32), special(frame.whole)]))


def cut(picture: Image.Image, side: int) -> np.ndarray:
  """u8[tiles,H,W,3] of a picture of whole tiles, row by row."""
  pixels = np.asarray(picture)
  grid = pixels.reshape(
      picture.height // side, side, picture.width // side, side, 3)
  return grid.swapaxes(1, 2).reshape(-1, side, side, 3)


class Tiling(Protocol):
  """A strategy."""

  def places(self, height: int, width: int, side: int, tokens: int,
             frame: Frame) -> Places:
    """Of an image of that size.

    Args:
      height: of the image, pixels.
      width: likewise.
      side: H = W of a tile, pixels.
      tokens: T, of a tile.
      frame: the connector's special tokens.
    """

  def tiles(self, picture: Image.Image,
            side: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels u8[slots,H,W,3], the first tile the whole image, and the valid
    box of each, i32[slots,4] as (y0, x0, y1, x1)."""
