"""Markdown tables from a study's results, and their places in a README.

  <!-- results: NAME -->
  ... written from results/NAME.json, never by hand ...
  <!-- end -->
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.errors import InputError
from align_jax.evals.contrast import arms_of, figure
from align_jax.evals.intervals import paired_t

_MARKED = re.compile(
    r"(?P<mark><!-- results: (?P<name>[\w-]+) -->\n)(?P<shown>.*?)"
    r"(?P<end><!-- end -->)", re.DOTALL)

CAVEAT = ("Synthetic data, small model; not comparable with the paper's "
          "numbers.")


def table(results: dict[str, Any]) -> str:
  """A study's arms as Markdown, with everything that must stand beside it."""
  columns = results["columns"]
  rows = [["connector" if results["arms"] == "connector" else results["arms"],
           *(c["title"] for c in columns)]]
  for exploratory, label in ((False, ""), (True, " (exploratory)")):
    for arm, cells in arms_of(results, exploratory).items():
      rows.append([arm + label, *(_entry(cells, c) for c in columns)])
  lines = ["| " + " | ".join(row) + " |" for row in rows]
  lines.insert(1, "| --- |" + " ---: |" * len(columns))
  seeds = sorted({c["seed"] for c in results["cells"].values()})
  devices = sorted({str(c["device"]) for c in results["cells"].values()})
  commits = sorted({str(c[key])[:12] for c in results["cells"].values()
                    for key in ("train_commit", "commit") if key in c})
  lines += [
      "",
      "Primary contrast, fixed beforehand: "
      f"{' against '.join(results['primary'])}, "
      f"by {results['metric'].replace('_', ' ')}. "
      f"**{_capital(results['contrast']['verdict'])}.**",
      "",
      " ".join([*results["notes"], *_tuned(results), CAVEAT]),
      f"Seed{'s' if len(seeds) > 1 else ''} "
      f"{', '.join(map(str, seeds)) or 'none yet'}; "
      f"{', '.join(devices) or 'no device yet'}; "
      f"commit {', '.join(commits) or 'none yet'}. "
      f"Command: `{results['command']}`.",
  ]
  return "\n".join(lines) + "\n"


def _tuned(results: dict[str, Any]) -> list[str]:
  """How the learning rates were found, and whether one lies at an edge."""
  arms = []
  for arm, found in results.get("tuning", {}).items():
    rates = sorted(map(float, found["scores"]))
    edge = (", the lowest tried" if found["rate"] == rates[0] else
            ", the highest tried" if found["rate"] == rates[-1] else "")
    arms.append(f"{arm} {found['rate']:g}{edge}")
  if not arms:
    return []
  return [f"Learning rates, the best of {', '.join(f'{r:g}' for r in rates)} "
          f"for each arm on data that is not reported: {'; '.join(arms)}."]


def _capital(text: str) -> str:
  return text[:1].upper() + text[1:]


def _entry(cells: list[dict[str, Any]], column: dict[str, str]) -> str:
  """One column of one arm: a mean over seeds, with its interval."""
  kind, key = column["kind"], column["key"]
  values = [v for c in cells if (v := figure(c, key)) is not None]
  if not values:
    return "–"
  mean = float(np.mean(values))
  if kind == "count":
    return f"{mean:,.0f}"
  if kind == "seconds":
    return f"{mean:,.0f} s"
  if kind != "percent":
    return f"{mean:.3g}"
  if len(values) > 1:
    test = paired_t(values)
    return f"{100 * mean:.1f} ± {100 * (test.high - test.mean):.1f} %"
  if column.get("interval") and (
      interval := figure(cells[0], column["interval"])):
    return (f"{100 * mean:.1f} % [{100 * interval[0]:.1f}, "
            f"{100 * interval[1]:.1f}]")
  return f"{100 * mean:.1f} %"


def fill(text: str, results_dir: str | Path) -> str:
  """The text with every marked table written anew.

  Raises:
    InputError: a table is shown whose results file does not exist.
  """
  def replace(match: re.Match) -> str:
    path = Path(results_dir) / f"{match['name']}.json"
    if not path.is_file():
      if not match["shown"].strip():
        return match[0]  # marked, and still to be run
      raise InputError(f"a table is shown of {match['name']!r}, but there is "
                       f"no {path}; run its study first")
    results = json.loads(path.read_text(encoding="utf-8"))
    return match["mark"] + table(results) + match["end"]

  return _MARKED.sub(replace, text)


def differing(text: str, results_dir: str | Path) -> list[str]:
  """Names of the marked tables that are not what their results say."""
  written = fill(text, results_dir)
  return [a["name"] for a, b in zip(_MARKED.finditer(text),
                                    _MARKED.finditer(written))
          if a[0] != b[0]]
