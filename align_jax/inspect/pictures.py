"""Pictures: the words of visual tokens, laid over their patches."""

import functools
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import text_to_path
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

INK, PAPER, QUIET, ACCENT = "#16202c", "#ffffff", "#66737f", "#0b7a75"
GOOD, BAD = "#16794a", "#b3261e"
FONT = "DejaVu Sans"  # comes with matplotlib


def grid_of(tokens: int) -> tuple[int, int] | None:
  """Rows and columns of T tokens, if they form a square; else None."""
  side = math.isqrt(tokens)
  return (side, side) if side * side == tokens else None


def words_over_patches(
    image: np.ndarray,
    words: Sequence[Sequence[str]],
    weights: np.ndarray,
    title: str = "",
    note: str = "",
    answers: Sequence[tuple[str, str, bool]] = (),
) -> bytes:
  """The image, and beside it each patch under the words of its token.

  The first word of a patch is large; its cell is the darker the more the
  token is like that word, so that an undecided token looks undecided.

  Args:
    image: u8[H,W,3] as the tower saw it.
    words: for each of T tokens, row by row, its words, best first.
    weights: f[T], of the first word: a cosine or a probability.
    title: what is shown.
    note: how to read it.
    answers: (question, answer, whether it is right), to stand under the
      image as far as there is room.

  Returns:
    A PNG.

  Raises:
    ValueError: the tokens form no grid.
  """
  grid = grid_of(len(words))
  if grid is None:
    raise ValueError(f"{len(words)} tokens form no square grid of patches")
  rows, cols = grid
  side = min(max(1.45 * cols, 6.4), 20.0)
  # In inches: the grid, a small image left of it, a heading above both.
  small, edge, heading = 0.58 * side, 0.18, 0.95
  wide, tall = small + side + 3 * edge, side + heading + edge
  figure = Figure(figsize=(wide, tall), dpi=120, facecolor=PAPER)
  FigureCanvasAgg(figure)
  place = lambda x, y, size: figure.add_axes(
      (x / wide, y / tall, size / wide, size / tall))
  whole = place(edge, edge + side - small, small)
  cells = place(small + 2 * edge, edge, side)
  say = lambda x, y, text, **kw: figure.text(
      x / wide, 1 - y / tall, text, va="top", parse_math=False, fontfamily=FONT,
      **kw)
  say(edge, 0.16, title, fontsize=17, color=INK, fontweight="bold")
  say(edge, 0.54, note, fontsize=10.5, color=QUIET)
  letters = int(small * 72 / 6.4)  # of a line under the image
  for at, (question, answer, right) in enumerate(answers):
    below = heading + small + 0.14 + 0.5 * at
    if below + 0.45 < tall:
      say(edge, below, _short(question, letters), fontsize=10.5, color=QUIET)
      say(edge, below + 0.19,
          _short(f"{'✓' if right else '✗'} {answer}", letters - 4),
          fontsize=12, color=GOOD if right else BAD, fontweight="bold")
  for axes in (whole, cells):
    axes.imshow(image, extent=(0, cols, rows, 0), interpolation="lanczos")
    axes.set_axis_off()

  low, high = float(np.min(weights)), float(np.max(weights))
  shade = (np.asarray(weights) - low) / max(high - low, 1e-9)
  room = 72.0 * side / cols  # points across a cell
  for token, choice in enumerate(words):
    row, col = divmod(token, cols)
    _cell(cells, col, row, 0.38 + 0.42 * float(shade[token]))
    _words(cells, col, row, choice, room)
  return _png(figure)


def _cell(axes: Any, x: int, y: int, alpha: float) -> None:
  gap = 0.025
  axes.add_patch(FancyBboxPatch(
      (x + gap, y + gap), 1 - 2 * gap, 1 - 2 * gap, linewidth=0,
      boxstyle="round,pad=0,rounding_size=0.06", facecolor=INK, alpha=alpha))


def _words(axes: Any, x: int, y: int, choice: Sequence[str],
           room: float) -> None:
  """One large word, and as many smaller ones as the cell has room for."""
  small = room >= 52
  lines = [_short(w) for w in choice[:4 if small else 1]]
  outline = [patheffects.withStroke(linewidth=1.4, foreground=INK + "99")]
  for at, word in enumerate(lines):
    first = at == 0
    weight = "bold" if first else "normal"
    size = min(room * (0.20 if first else 0.125),
               0.86 * room / max(_ems(word, weight), 1e-9))
    centre = 0.5 if len(lines) == 1 else (0.30, 0.55, 0.71, 0.87)[at]
    axes.text(x + 0.5, y + centre, word, ha="center", va="center",
              fontsize=max(size, 3.5), color="white",
              alpha=1.0 if first else 0.9,
              fontweight=weight,
              path_effects=outline, fontfamily=FONT, parse_math=False)


def _ems(text: str, weight: str) -> float:
  """How wide a text is, in units of its font's size."""
  properties = FontProperties(family=FONT, weight=weight, size=100)
  return text_to_path.get_text_width_height_descent(
      text, properties, ismath=False)[0] / 100


def _short(text: str, most: int = 14) -> str:
  """Cut to a length, with a box for what the font cannot draw."""
  font = _font()
  text = "".join(c if font.get_char_index(ord(c)) else "▯" for c in text)
  return text if len(text) <= most else text[:most - 1] + "…"


@functools.cache
def _font() -> FT2Font:
  return get_font(findfont(FONT))


def norms(visual: np.ndarray, text: np.ndarray) -> bytes:
  """Histograms of the norms of visual tokens and of word embeddings."""
  figure = Figure(figsize=(7.2, 2.6), dpi=130, facecolor=PAPER)
  FigureCanvasAgg(figure)
  axes = figure.add_axes((0.02, 0.20, 0.96, 0.70))
  ends = np.concatenate([visual, text])
  low, high = float(ends.min()), float(ends.max())
  # On a logarithmic axis once the two differ by more than a factor of five.
  wide = low > 0 and high / max(low, 1e-9) > 5
  bins = (np.geomspace(low, high, 60) if wide
          else np.linspace(low, high + 1e-9, 60))
  for values, color, name in ((text, "#9aa5b1", "word embeddings"),
                              (visual, ACCENT, "visual tokens")):
    counts, _ = np.histogram(values, bins)
    axes.stairs(counts / max(counts.max(), 1), bins, fill=True, color=color,
                alpha=0.75, label=name)
  if wide:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
  axes.set_yticks([])
  axes.set_xlabel("norm", color=QUIET, fontsize=10)
  axes.tick_params(colors=QUIET, labelsize=9)
  for side in ("top", "left", "right"):
    axes.spines[side].set_visible(False)
  axes.spines["bottom"].set_color("#c9d1d9")
  axes.legend(frameon=False, fontsize=10, labelcolor=INK)
  return _png(figure)


def thumbnail(image: np.ndarray, side: int = 192) -> bytes:
  """The image u8[H,W,3] as a PNG of about `side` pixels, never smaller."""
  picture = Image.fromarray(image)
  scale = max(side / max(picture.size), 1.0)
  size = tuple(round(s * scale) for s in picture.size)
  stream = io.BytesIO()
  picture.resize(size, Image.LANCZOS).save(stream, "PNG")
  return stream.getvalue()


def _png(figure: Figure) -> bytes:
  stream = io.BytesIO()
  figure.savefig(stream, format="png", metadata={"Software": None})
  return stream.getvalue()
