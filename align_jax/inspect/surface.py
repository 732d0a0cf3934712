"""A picture of what two layers decide: the paper's surface over l and k."""

import io
import re
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from align_jax.evals.contrast import figure

# Arms of other layers are called so; an arm without them has those given.
_LAYERS = re.compile(r"(?P<arm>\w+?)_(?P<l>\d+)_(?P<k>\d+)")


def points(results: dict[str, Any], arm: str, own: tuple[int, int],
           ) -> dict[tuple[int, int], list[float]]:
  """(l, k) -> the metric of each of its cells.

  Args:
    results: of a study, as its file has them.
    arm: whose surface it is; "ARM_3_9" is that arm with l = 3 and k = 9.
    own: l and k of the arm itself.
  """
  found: dict[tuple[int, int], list[float]] = {}
  for cell in results["cells"].values():
    match = _LAYERS.fullmatch(cell["arm"])
    value = figure(cell, results["metric"])
    if value is None:
      continue
    if cell["arm"] == arm:
      found.setdefault(own, []).append(value)
    elif match and match["arm"] == arm:
      found.setdefault((int(match["l"]), int(match["k"])), []).append(value)
  return found


def surface(results: dict[str, Any], arm: str = "sam",
            own: tuple[int, int] = (3, 9), period: int = 2) -> bytes | None:
  """A PNG of the metric over l <= k; None while there are too few points.

  Dots are cells that ran, and what lies between them is interpolated. A ring
  marks a dot where no layer from l to k looks at the pictures. Where a dot
  has several seeds, their standard deviation stands beside it: what differs
  by less says nothing.

  Args:
    results: of a study.
    arm: see `points`.
    own: likewise.
    period: layers 1, 1 + period, ... look at the pictures.
  """
  found = points(results, arm, own)
  if len(found) < 3:
    return None
  places = np.array(list(found), float)
  height = 100 * np.array([np.mean(v) for v in found.values()])
  page = Figure(figsize=(6, 5), dpi=110)
  FigureCanvasAgg(page)
  axes = page.add_subplot()
  colors = matplotlib.colormaps["viridis"]
  levels = np.linspace(height.min(), max(height.max(), height.min() + 1e-3),
                       11)
  flat = np.linalg.matrix_rank(places - places[0]) < 2
  if not flat:
    axes.tricontourf(*places.T, height, levels=levels, cmap=colors, alpha=0.6,
                     extend="both")
  dots = axes.scatter(*places.T, c=height, cmap=colors, s=70,
                      edgecolors="black", zorder=3)
  for (l, k), values in found.items():
    text = f"{100 * np.mean(values):.1f}"
    if len(values) > 1:
      text += f" ± {100 * np.std(values, ddof=1):.1f}\n({len(values)} seeds)"
    axes.annotate(text, (l, k), (6, 6), textcoords="offset points",
                  fontsize=8)
    if not any((layer - 1) % period == 0 for layer in range(l, k + 1)):
      axes.scatter([l], [k], s=260, facecolors="none", edgecolors="crimson",
                   linewidths=1.6, zorder=4)
  axes.set_xlabel("l, whose input guides the second stream")
  axes.set_ylabel("k, before which it guides back")
  axes.set_title(f"{results['name']}: {results['metric']}, %\n"
                 "ring: no layer from l to k looks at the pictures",
                 fontsize=9)
  page.colorbar(dots)
  page.tight_layout()
  stream = io.BytesIO()
  page.savefig(stream, format="png", metadata={"Software": None})
  return stream.getvalue()
