"""What icons are pasted on: canvases, landscapes, cards."""

import random
from collections.abc import Sequence

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from align_jax.data.linked_images.icons import icon

SIZE = 224  # pixels, as SAM's tower sees them

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (200, 40, 40), "blue": (40, 80, 200), "green": (40, 140, 60),
    "orange": (225, 120, 20), "purple": (130, 60, 170), "black": (30, 30, 30),
    "brown": (120, 75, 40), "pink": (225, 100, 160), "teal": (20, 140, 140),
}

Color = tuple[int, int, int]


def pale(rng: random.Random) -> Color:
  """A light colour, on which every icon stands out."""
  return tuple(rng.randint(205, 250) for _ in range(3))


def canvas(color: Color) -> Image.Image:
  return Image.new("RGB", (SIZE, SIZE), color)


def landscape(rng: random.Random) -> Image.Image:
  """A sky over hills, in pale colours, never twice the same."""
  top, bottom = (np.array(pale(rng), np.float64) for _ in range(2))
  share = np.linspace(0, 1, SIZE)[:, None, None]
  sky = np.broadcast_to((1 - share) * top + share * bottom,
                        (SIZE, SIZE, 3)).copy()
  across = np.arange(SIZE)
  for _ in range(rng.randint(1, 3)):
    line = rng.uniform(0.5, 0.85) * SIZE + rng.uniform(5, 25) * np.sin(
        across / rng.uniform(15, 60) + rng.uniform(0, 6.3))
    below = np.arange(SIZE)[:, None] > line[None]
    sky[below] = [rng.randint(170, 225) for _ in range(3)]
  return Image.fromarray(sky.astype(np.uint8))


def paste(onto: Image.Image, drawn: Image.Image,
          centre: tuple[float, float]) -> None:
  """Lays an RGBA picture on another, inside its borders."""
  place = [round(min(max(c - s / 2, 0), SIZE - s))
           for c, s in zip(centre, drawn.size)]
  onto.paste(drawn, tuple(place), drawn)


def posed(rng: random.Random, name: str, size: int,
          color: Color) -> Image.Image:
  """An icon at another scale and turn, perhaps mirrored."""
  drawn = icon(name, round(size * rng.uniform(0.75, 1.15)), color)
  if rng.random() < 0.5:
    drawn = drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return drawn.rotate(rng.uniform(-25, 25), Image.BICUBIC, expand=True)


def grid(rng: random.Random, names: Sequence[str], rows: int,
         cols: int) -> Image.Image:
  """rows x cols icons, each in a colour of its own choice."""
  onto = canvas(pale(rng))
  cell = SIZE / max(rows, cols)
  left, top = ((SIZE - cell * n) / 2 for n in (cols, rows))
  for place, name in enumerate(names):
    row, col = divmod(place, cols)
    paste(onto, icon(name, round(0.68 * cell), rng.choice(
        list(COLORS.values()))),
          (left + (col + 0.5) * cell, top + (row + 0.5) * cell))
  return onto


def card(rng: random.Random, title: str, author: str, genre: str,
         emblem: str, ink: Color) -> Image.Image:
  """The cover of a book: genre, title, an emblem, and who wrote it."""
  onto = canvas(pale(rng))
  pen = ImageDraw.Draw(onto)
  band = rng.randint(24, 34)
  pen.rectangle((0, 0, SIZE, band), fill=ink)
  pen.text((SIZE / 2, band / 2), genre.upper(), "white", _font(15),
           anchor="mm")
  size = next(s for s in range(18, 0, -1)
              if _font(s).getlength(title) < SIZE - 16)
  pen.text((SIZE / 2, band + 26), title, ink, _font(size), anchor="mm")
  paste(onto, icon(emblem, rng.randint(70, 96), ink),
        (SIZE / 2, SIZE / 2 + 14))
  pen.text((SIZE / 2, SIZE - 20), author, (20, 20, 20), _font(16),
           anchor="mm")
  return onto


def _font(size: int) -> ImageFont.FreeTypeFont:
  return ImageFont.truetype(findfont("DejaVu Sans"), size)
