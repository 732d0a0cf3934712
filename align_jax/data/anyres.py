"""LLaVA-NeXT's tiling: an unstretched image on a grid of tiles.

  1. Of some grids, the one that keeps most of the image.
  2. The image keeps its shape in the middle of the grid; the rest is black.
  3. The whole image, stretched over a tile, comes first; then tile by tile,
     or all of them as one picture, without what is padding.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from align_jax.data.tiling import Frame, Places, cut, special, uncut
from align_jax.errors import InputError
from align_jax.registry import nearest

MERGES = ("unpad", "flat")


class Anyres:
  """LLaVA-NeXT's: the pinpoint that keeps most of the image, without padding.

  Source: transformers, models/llava_next (image processor and
  `pack_image_features`), of which it gives the pixels and the tokens.

  Attributes:
    grid: pinpoints (height, width), multiples of a tile's side.
    merge: "unpad", the tiles' tokens as one picture without its padding, a
      newline behind each row where the connector has one; or "flat", tile
      after tile, for tokens that are no picture.
  """

  def __init__(self, grid: Sequence[Sequence[int]], merge: str = "unpad"):
    self.grid = [(int(h), int(w)) for h, w in grid]
    self.merge = merge
    if not self.grid:
      raise InputError("anyres needs at least one pinpoint (height, width)")
    if merge not in MERGES:
      raise InputError(f"anyres has no merge {merge!r}{nearest(merge, MERGES)} "
                       f"(known: {', '.join(MERGES)})")

  def best(self, height: int, width: int) -> tuple[int, int]:
    """The pinpoint with most of the image's pixels, then with least waste."""
    def worth(point: tuple[int, int]) -> tuple[int, int]:
      scale = min(point[1] / width, point[0] / height)
      kept = min(int(width * scale) * int(height * scale), width * height)
      return kept, kept - point[0] * point[1]

    return max(self.grid, key=worth)  # the first of equals

  def places(self, height: int, width: int, side: int, tokens: int,
             frame: Frame) -> Places:
    """See `Tiling`.

    Raises:
      InputError: T tokens that are no square, with merge "unpad"; a pinpoint
        that is no multiple of a tile.
    """
    high, wide = self.best(height, width)
    if high % side or wide % side:
      raise InputError(f"anyres: the pinpoint {high} x {wide} is no multiple "
                       f"of the tower's {side} pixels")
    down, right = high // side, wide // side
    first = uncut(tokens, frame).visual
    if self.merge == "flat":
      rest = np.arange(tokens, (1 + down * right) * tokens, dtype=np.int32)
      return Places(1 + down * right, np.concatenate([first, rest]))
    across = math.isqrt(tokens)
    if across**2 != tokens:
      raise InputError(
          f"anyres lays a tile's tokens on a square, which {tokens} are not; "
          "set data.tiling.options.merge to 'flat'")
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
    ends = np.tile(special(frame.newline), (len(index), 1))
    rows = np.concatenate([index.astype(np.int32), ends], axis=1)
    return Places(1 + down * right,
                  np.concatenate([first, rows.reshape(-1)]))

  def tiles(self, picture: Image.Image,
            side: int) -> tuple[np.ndarray, np.ndarray]:
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
    small = np.asarray(picture.resize((side, side), Image.BICUBIC))
    pixels = np.concatenate([small[None], cut(canvas, side)])
    return pixels, np.tile(np.int32([0, 0, side, side]), (len(pixels), 1))
