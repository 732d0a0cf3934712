"""Figures for people and for programs."""

import contextlib
import importlib.metadata
from collections.abc import Iterable
from typing import Any

import jax

from align_jax.bench.figure import Figure
from align_jax.train.manifest import commit, versions


def about() -> dict[str, Any]:
  """Where the figures were taken.

  The devices are those at hand; what runs on a mesh says how many it takes.
  """
  found = versions()
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    found["torch"] = importlib.metadata.version("torch")
  device = jax.devices()[0]
  return {"platform": device.platform, "device": device.device_kind,
          "devices": jax.device_count(), "versions": found,
          "commit": commit()}


def as_json(figures: Iterable[Figure]) -> dict[str, Any]:
  """{key: figure} beside "about"."""
  return {"about": about()} | {f.key: f.as_json() for f in figures}


def line(figure: Figure) -> str:
  """A figure in a few lines."""
  f = figure
  value = f"{f.value:.4g}" + ("" if f.unit == "ratio" else f" {f.unit}")
  goal = ""
  if f.goal is not None:
    sign = ">=" if f.higher else "<="
    state = "met" if f.met else "FAILED" if f.failed else "missed"
    limit = "" if f.limit is None else f", fail line {f.limit:g}"
    goal = f"   goal {sign} {f.goal:g}{limit}: {state}"
  lines = [f"{f.key:<12} {value}{goal}", f"  {f.what}",
           f"  {f.shapes}; {f.dtype}"]
  if f.rounds:
    spread = ("" if f.spread is None else
              f", quartiles {f.spread[0]:.4g} to {f.spread[1]:.4g}")
    lines.append(f"  median of {f.rounds} rounds{spread}" if f.rounds > 1
                 else "  one round, so no spread")
  if f.parts:
    lines.append("  " + ", ".join(f"{k} {v:.4g}"
                                  for k, v in f.parts.items()))
  if f.flops:
    lines.append(f"  FLOPs: {f.flops}")
  return "\n".join(lines)


def heading() -> str:
  """Devices and versions in a line."""
  a = about()
  packages = ", ".join(f"{k} {v}" for k, v in a["versions"].items())
  return f"{a['devices']} x {a['device']} ({a['platform']}); {packages}"
