"""One self-contained HTML page about a run: open it, send it, keep it."""

import base64
import dataclasses
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from align_jax.inspect import charts
from align_jax.inspect.page import TEMPLATE


@dataclasses.dataclass(frozen=True)
class Report:
  """What the page shows; what is empty is left out.

  Attributes:
    title: name of the run.
    subtitle: its parts, in a line.
    evaluation: what `align-jax evaluate` gave, or None.
    samples: [{"image": png, "questions": [{"question", "prediction",
      "answer", "right"}]}].
    pictures: PNGs of words over patches.
    words_note: how to read them.
    distribution: figures of a connector that mixes words, or None.
    geometry: as `geometry.compare` gives it, or None.
    norms: PNG of the two histograms.
    losses: (step, loss) pairs.
    facts: (name, value) pairs: weights, commit, versions.
  """
  title: str
  subtitle: str = ""
  evaluation: dict[str, Any] | None = None
  samples: Sequence[dict[str, Any]] = ()
  pictures: Sequence[bytes] = ()
  words_note: str = ""
  distribution: dict[str, Any] | None = None
  geometry: dict[str, Any] | None = None
  norms: bytes = b""
  losses: Sequence[tuple[float, float]] = ()
  facts: Sequence[tuple[str, Any]] = ()


def html(report: Report) -> str:
  """The page, with every picture inside it."""
  environment = jinja2.Environment(
      autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
  values = {f.name: getattr(report, f.name)
            for f in dataclasses.fields(report)}
  evaluation = values.pop("evaluation")
  if evaluation is not None:
    optional = dict.fromkeys(
        ("margin", "margin_ci95", "blind_accuracy", "probe", "noise",
         "question_prior_accuracy", "majority_accuracy"))
    optional |= {"headline": "accuracy", "share": True, "ci95": None}
    evaluation = optional | evaluation
    evaluation["by_type"] = {
        kind: {"blind_accuracy": None} | row
        for kind, row in evaluation["by_type"].items()}
  curve = charts.line(values.pop("losses"), "step", "loss")
  return environment.from_string(TEMPLATE).render(
      **values, e=evaluation, curve=Markup(curve), png=_data_url,
      pct=(_percent if evaluation is None or evaluation["share"]
           else lambda x: "–" if x is None else _number(x)),
      points=_points, num=_number, cos=lambda x: f"{x:.2f}")


def _data_url(png: bytes) -> str:
  return "data:image/png;base64," + base64.b64encode(png).decode()


def _percent(share: float | None) -> str:
  return "–" if share is None else f"{100 * share:.1f} %"


def _points(share: float) -> str:
  return f"{100 * share:+.1f}".replace("-", "−")


def _number(value: float) -> str:
  """Three digits that matter, without an exponent where one can do."""
  return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
