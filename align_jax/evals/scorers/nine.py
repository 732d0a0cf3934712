"""AlignVLM's average: the plain mean over its nine document sets.

arXiv 2502.01341v2, Table 1 and 2: each set's own metric in percent, all
weighing alike, whatever their sizes. It was evaluated with VLMEvalKit.

  align-jax evaluate RUN --task docvqa --scorer anls_vlmevalkit ...  (and so on)
  align-jax evaluate RUN --nine
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align_jax.errors import InputError
from align_jax.registry import nearest

# Set -> scorers of ours that give its metric; first VLMEvalKit's form, where it
# has one. The tasks' own default may be another.
NINE = {
    "docvqa": ("anls_vlmevalkit", "anls", "anls_due"),
    "infovqa": ("anls_vlmevalkit", "anls", "anls_due"),
    "deepform": ("due_f1",),
    "klc": ("due_f1",),
    "wtq": ("denotation", "denotation_due"),
    "tabfact": ("tabfact", "tabfact_contains"),
    "chartqa": ("relaxed_vlmevalkit", "relaxed"),
    "textvqa": ("vqa_vlmevalkit", "vqa_evalai", "vqa_official"),
    "tablevqa": ("tablevqa",),
}


def average(scores: Mapping[str, float]) -> float:
  """The mean over the nine, of shares or of percents.

  Raises:
    InputError: a set is missing, or one is none of the nine.
  """
  faults = [f"no score for {name}" for name in NINE if name not in scores]
  faults += [f"{name!r} is none of the nine{nearest(name, NINE)}"
             for name in scores if name not in NINE]
  if faults:
    raise InputError("; ".join(faults))
  return sum(scores[name] for name in NINE) / len(NINE)


def of_run(folder: Path) -> dict[str, Any]:
  """The average over a run's own results.

  Args:
    folder: of the run, with eval/docvqa.json and so on.

  Returns:
    {"average": ..., "sets": {set: {"accuracy", "scorer", "n"}}}.

  Raises:
    InputError: a set has no result, or one by a scorer of another metric; all
      are named.
  """
  sets, faults = {}, []
  for name, scorers in NINE.items():
    file = folder / "eval" / f"{name}.json"
    if not file.is_file():
      faults.append(f"no {file}; align-jax evaluate {folder} --task {name} "
                    f"--scorer {scorers[0]} --option folder=... writes it")
      continue
    result = json.loads(file.read_text(encoding="utf-8"))
    if result["scorer"] not in scorers:
      faults.append(f"{file} is of the scorer {result['scorer']!r} (one of "
                    f"{', '.join(scorers)})")
    sets[name] = {key: result[key] for key in ("accuracy", "scorer", "n")}
  if faults:
    raise InputError("the average of the nine:\n  " + "\n  ".join(faults))
  return {"average": average({n: s["accuracy"] for n, s in sets.items()}),
          "sets": sets}


def lines(found: Mapping[str, Any]) -> str:
  """What `of_run` gives, for people."""
  told = []
  for name, (usual, *_) in NINE.items():
    one = found["sets"][name]
    told.append(f"  {name:<10} {100 * one['accuracy']:5.1f} %  {one['n']:>6,} "
                f"questions, {one['scorer']}"
                + f" (VLMEvalKit: {usual})" * (one["scorer"] != usual))
  return "\n".join([*told, f"  {'mean':<10} {100 * found['average']:5.1f} %  "
                    "all sets weigh alike"])
