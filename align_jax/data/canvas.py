"""Ovis2's tiling as transformers has it: the image stretched over a grid.

  1. A grid of at most `max_tiles` tiles: of those that show enough of the
     image the fewest (see coverage.py), or the one nearest to its shape.
  2. The image is stretched over the whole grid and cut along it.
  3. More than one tile: the whole image, stretched over one, comes first.

Source: transformers, models/ovis2 (`crop_image_to_patches` of the PIL image
processor, `replace_image_token` of the processor), of which it gives the pixels
and the tokens. What covers the image as r rows and c columns is laid out there
as c rows and r columns; so it is here, since its tokens are those.
"""

import numpy as np
from PIL import Image

from align_jax.data.coverage import Coverage
from align_jax.data.tiling import cut
from align_jax.errors import InputError


class Canvas(Coverage):
  """The strategy; marks stand between tiles as in `Coverage`.

  Attributes:
    max_tiles: without the whole image, which is one more.
    min_tiles: likewise, of a grid by shape.
    covering: the grid that shows nine tenths of the image; False is the one
      of the shape nearest to the image's.
  """

  def __init__(self, max_tiles: int = 12, min_tiles: int = 1,
               covering: bool = True):
    super().__init__(max_tiles)
    if not 1 <= min_tiles <= max_tiles:
      raise InputError(f"canvas: min_tiles = {min_tiles} is not between 1 and "
                       f"max_tiles = {max_tiles}")
    self.min_tiles, self.covering = min_tiles, covering

  def grid(self, height: int, width: int, side: int) -> tuple[int, int]:
    """(rows, columns) of tiles."""
    if self.covering:
      columns, rows = super().grid(height, width, side)
      return rows, columns
    best, least = (1, 1), float("inf")
    grids = [(r, c) for c in range(1, self.max_tiles + 1)
             for r in range(1, self.max_tiles // c + 1)
             if r * c >= self.min_tiles]
    for rows, columns in sorted(grids, key=lambda g: g[0] * g[1]):
      off = abs(width / height - columns / rows)
      # Of equal shapes the larger one, where the image fills half of it.
      if off < least or off == least and (
          height * width > 0.5 * side * side * rows * columns):
        best, least = (rows, columns), off
    return best

  def tiles(self, picture: Image.Image,
            side: int) -> tuple[np.ndarray, np.ndarray]:
    """See `Tiling`; every tile is full."""
    rows, columns = self.grid(picture.height, picture.width, side)
    stretched = lambda c, r: picture.resize((c * side, r * side),
                                            Image.BICUBIC)
    pixels = cut(stretched(columns, rows), side)
    if len(pixels) > 1:
      pixels = np.concatenate([cut(stretched(1, 1), side), pixels])
    return pixels, np.tile(np.int32([0, 0, side, side]), (len(pixels), 1))
