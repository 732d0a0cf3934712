"""Small charts as SVG, for a page that must stand alone."""

from collections.abc import Sequence
from html import escape

import numpy as np


def line(points: Sequence[tuple[float, float]], x_name: str, y_name: str,
         width: int = 760, height: int = 240) -> str:
  """A line over its raw points, smoothed where there are many.

  Args:
    points: (x, y), x ascending; values that are not finite are left out.
    x_name: of the x axis.
    y_name: of the y axis.
    width: in pixels of the drawing; the page scales it.
    height: likewise.

  Returns:
    An <svg>, or "" with fewer than two points.
  """
  kept = [(x, y) for x, y in points if np.isfinite(x) and np.isfinite(y)]
  if len(kept) < 2:
    return ""
  x, y = np.asarray(kept, np.float64).T
  left, right, top, bottom = 46, 12, 12, 34
  low, high = 0.0 if y.min() >= 0 else float(y.min()), float(y.max())
  high = high if high > low else low + 1.0
  to_x = lambda v: left + (v - x[0]) / max(x[-1] - x[0], 1e-9) * (
      width - left - right)
  to_y = lambda v: height - bottom - (v - low) / (high - low) * (
      height - top - bottom)
  path = lambda values: " ".join(
      f"{'ML'[i > 0]}{to_x(a):.1f},{to_y(b):.1f}"
      for i, (a, b) in enumerate(zip(x, values)))
  parts = []
  for tick in _ticks(low, high):
    parts.append(
        f'<line class="rule" x1="{left}" x2="{width - right}" '
        f'y1="{to_y(tick):.1f}" y2="{to_y(tick):.1f}"/>'
        f'<text x="{left - 8}" y="{to_y(tick) + 4:.1f}" '
        f'text-anchor="end">{tick:g}</text>')
  for tick in _ticks(x[0], x[-1]):
    parts.append(f'<text x="{to_x(tick):.1f}" y="{height - bottom + 17}" '
                 f'text-anchor="middle">{tick:g}</text>')
  smooth = _smooth(y)
  if smooth is not y:
    parts.append(f'<path class="raw" d="{path(y)}"/>')
  parts.append(f'<path class="line" d="{path(smooth)}"/>')
  parts.append(f'<text x="{width - right}" y="{height - 3}" '
               f'text-anchor="end">{escape(x_name)}</text>'
               f'<text x="{left + 8}" y="{top + 10}">{escape(y_name)}</text>')
  return (f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
          f'aria-label="{escape(y_name)} over {escape(x_name)}">'
          + "".join(parts) + "</svg>")


def _smooth(y: np.ndarray) -> np.ndarray:
  """A centred running mean over a twentieth, once there are forty points."""
  if len(y) < 40:
    return y
  half = max(len(y) // 40, 1)
  total = np.concatenate([[0.0], np.cumsum(y)])
  at = np.arange(len(y))
  start, end = np.maximum(at - half, 0), np.minimum(at + half + 1, len(y))
  return (total[end] - total[start]) / (end - start)


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
  """Round numbers between low and high."""
  rough = max(high - low, 1e-12) / about
  size = 10.0 ** np.floor(np.log10(rough))
  step = size * next(m for m in (1, 2, 5, 10) if m * size >= rough)
  first = np.ceil(low / step - 1e-9) * step
  count = int(np.floor((high - first) / step + 1e-9)) + 1
  return [float(round(first + i * step, 10)) for i in range(count)]
