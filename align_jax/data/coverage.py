"""Ovis 1.6's tiling: as few tiles as show most of an image.

  1. An image cut into r x c equal cells, r c at most `max_tiles`, shows what
     its cells keep when each is shrunk into a tile, as a share of its pixels.
  2. The fewest cells that show more than `threshold`; of equally many, those
     that show most. Where no grid shows that much: the one that shows most.
  3. More than one cell: the whole image, small, comes first.
  4. Each keeps its shape. What is left of its tile is zero after the pixels
     are normalised, which the tile's box says.

Source: AIDC-AI/Ovis, ovis/model/visual_tokenizer/base_visual_tokenizer.py at
f3f7f2e (`preprocess_image`, `construct_image_placeholders`); AlignVLM's section
3.1 names it, with at most 9 tiles. Its resize would ask for no pixel at all
where an image is more than a tile's side times as long as it is wide; here at
least one is left.
"""

import numpy as np
from PIL import Image

from align_jax.data.tiling import Frame, Places, special, uncut
from align_jax.errors import InputError

Box = tuple[int, int, int, int]  # left, upper, right, lower


class Coverage:
  """The strategy.

  Attributes:
    max_tiles: without the whole image, which is one more.
    threshold: a share of the image's pixels.
  """

  def __init__(self, max_tiles: int = 9, threshold: float = 0.9):
    if max_tiles < 1 or not 0 < threshold < 1:
      raise InputError(
          f"coverage: max_tiles = {max_tiles} (at least 1) and threshold = "
          f"{threshold} (between 0 and 1)")
    self.max_tiles, self.threshold = max_tiles, threshold

  def grid(self, height: int, width: int, side: int) -> tuple[int, int]:
    """(rows, columns) of tiles."""
    grids = [(r, c) for r in range(1, self.max_tiles + 1)
             for c in range(1, self.max_tiles // r + 1)]
    shown = {g: sum(_shown(cell, side) for cell in _cells(height, width, g))
             / (height * width) for g in grids}
    count = lambda g: g[0] * g[1]
    good = [g for g in grids if shown[g] > self.threshold]
    if good:
      return min(good, key=lambda g: (count(g), -shown[g]))
    return min(grids, key=lambda g: (-shown[g], count(g)))

  def places(self, height: int, width: int, side: int, tokens: int,
             frame: Frame) -> Places:
    """See `Tiling`; marks stand between tiles, none behind a row's last."""
    rows, columns = self.grid(height, width, side)
    first = uncut(tokens, frame)
    if rows * columns == 1:
      return first
    parts = [first.visual]
    for tile in range(rows * columns):
      row, column = divmod(tile, columns)
      if column:
        parts.append(special(frame.column))
      elif row:
        parts.append(special(frame.row))
      parts.append(np.arange((tile + 1) * tokens, (tile + 2) * tokens,
                             dtype=np.int32))
    return Places(1 + rows * columns, np.concatenate(parts))

  def tiles(self, picture: Image.Image,
            side: int) -> tuple[np.ndarray, np.ndarray]:
    """See `Tiling`."""
    width, height = picture.size
    cells = _cells(height, width, self.grid(height, width, side))
    if len(cells) > 1:
      cells.insert(0, (0, 0, width, height))
    found = [_fitted(picture.crop(cell), side) for cell in cells]
    return (np.stack([pixels for pixels, _ in found]),
            np.asarray([box for _, box in found], np.int32))


def _cells(height: int, width: int, grid: tuple[int, int]) -> list[Box]:
  """Row by row; what does not divide goes to the last row and column."""
  rows, columns = grid
  high, wide = height // rows, width // columns
  return [(c * wide, r * high,
           width if c == columns - 1 else (c + 1) * wide,
           height if r == rows - 1 else (r + 1) * high)
          for r in range(rows) for c in range(columns)]


def _shown(cell: Box, side: int) -> float:
  """Pixels that a cell keeps in a tile."""
  left, upper, right, lower = cell
  short, long = sorted((right - left, lower - upper))
  return short * long if long <= side else short / long * side * side


def _fitted(picture: Image.Image, side: int) -> tuple[np.ndarray, Box]:
  """u8[H,W,3] with the picture in its middle, and its box."""
  width, height = picture.size
  if width >= height:
    wide, high = side, max(int(height / width * side), 1)
  else:
    wide, high = max(int(width / height * side), 1), side
  top, left = (side - high) // 2, (side - wide) // 2
  pixels = np.zeros((side, side, 3), np.uint8)
  pixels[top:top + high, left:left + wide] = np.asarray(
      picture.resize((wide, high), Image.BICUBIC))
  return pixels, (top, left, top + high, left + wide)
