"""A study's cells: one training and one evaluation each, run once."""

import dataclasses
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from align_jax.config import load_config, plain
from align_jax.evals.lock import alone


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run: train, then evaluate.

  Attributes:
    arm: what is compared, such as "mlp".
    config: "FILE[:arg]" or "NAME[:arg]", for `train`.
    seed: of initialisation and data order; arms are paired by it.
    overrides: config fields, {"stages[0].steps": 10}.
    evaluate: further options of `evaluate`, {"limit": 500, "noise": [0.5]};
      True where one takes no value.
    exploratory: outside the primary contrast; printed as such, never ranked.
    prepared: signature of what it shares with other cells.
    more: commands that look at its run, {"noise": ("inspect", "noise",
      "{run}")}: what each prints as JSON stands among the figures by its name.
  """
  arm: str
  config: str
  seed: int = 0
  overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
  evaluate: dict[str, Any] = dataclasses.field(default_factory=dict)
  exploratory: bool = False
  prepared: str = ""
  more: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def overrides(cell: Cell) -> list[str]:
  """Of the cell's config, "a.b=value" each; the seed is one of them."""
  return [f"{k}={v}" for k, v in {"seed": cell.seed, **cell.overrides}.items()]


def commands(cell: Cell, run: Path) -> list[list[str]]:
  """The two command lines of a cell, as a person would type them."""
  train = ["train", "--config", cell.config, "--workdir", str(run),
           *(f"--config.{o}" for o in overrides(cell))]
  evaluate = ["evaluate", str(run), "--json"]
  for name, value in cell.evaluate.items():
    flag = f"--{name.replace('_', '-')}"
    for one in value if isinstance(value, Sequence) and not isinstance(
        value, str) else [value]:
      evaluate += [flag] if one is True else [flag, str(one)]
  return [["align-jax", *train], ["align-jax", *evaluate]]


def further(cell: Cell, run: Path) -> dict[str, list[str]]:
  """The command lines that look at a cell's run."""
  return {name: ["align-jax", *(w.replace("{run}", str(run)) for w in words),
                 "--json"] for name, words in cell.more.items()}


# `align-jax ...` -> its standard output; see evals/workers.py.
Runner = Callable[[list[str]], str]


def run_cell(cell: Cell, folder: Path, runner: Runner,
             progress: Callable[[str], None] = lambda line: None,
             ) -> dict[str, Any]:
  """Trains and evaluates a cell in its folder, unless it is done already.

  A cell that was done with other settings, be it the study's or its
  config's, is run anew; what was done is moved aside, never deleted. One that
  another process is running is waited for.
  """
  with alone(folder.with_name(f"{folder.name}.lock"), progress):
    return _run_cell(cell, folder, runner, progress)


def _run_cell(cell: Cell, folder: Path, runner: Runner,
              progress: Callable[[str], None]) -> dict[str, Any]:
  now = signature(cell)
  done = folder / "cell.json"
  if done.is_file():
    record = json.loads(done.read_text(encoding="utf-8"))
    if record["signature"] == now:
      return record
    aside = folder.with_name(f"{folder.name}.{record['signature']}")
    while aside.exists():
      aside = aside.with_name(f"{aside.name}.older")
    folder.rename(aside)
    progress(f"cell {folder.name} was run with other settings than the study "
             f"or its config {cell.config} has now, so it is run anew; what "
             f"was done is kept in {aside}")
  folder.mkdir(parents=True, exist_ok=True)
  train, evaluate = commands(cell, folder / "run")
  started = time.monotonic()
  # The training's own output belongs to the person watching.
  print(runner(train), end="", file=sys.stderr)
  figures = json.loads(runner(evaluate))
  looks = further(cell, folder / "run")
  figures |= {name: json.loads(runner(c)) for name, c in looks.items()}
  if stages := by_stage(folder / "run" / "metrics.jsonl"):
    figures.setdefault("train", {})["stages"] = stages
  record = {
      "arm": cell.arm, "seed": cell.seed, "exploratory": cell.exploratory,
      "signature": now,
      "commands": [shlex.join(c) for c in (train, evaluate,
                                           *looks.values())],
      "commit": figures.pop("commit", "unknown"),  # of the evaluation
      "train_commit": figures.get("train", {}).get("commit", "unknown"),
      "device": figures.pop("device", "unknown"),
      "versions": figures.pop("versions", {}),
      "seconds": round(time.monotonic() - started, 1), "figures": figures}
  samples = figures.pop("samples", None)
  if samples:
    record["by_image"] = by_image(Path(samples))
  scratch = done.with_suffix(".tmp")
  scratch.write_text(json.dumps(record, indent=1), encoding="utf-8")
  scratch.replace(done)
  return record


def by_stage(log: Path) -> dict[str, dict[str, float]]:
  """Each stage's means of what a run logged: stage -> {name: mean}.

  `step_seconds`, and each objective's weight in a step: of SEA, its pairs.
  """
  found: dict[str, dict[str, list[float]]] = {}
  lines = log.read_text(encoding="utf-8").splitlines() if (
      log.is_file()) else []
  for line in map(json.loads, lines):
    stage = found.setdefault(line["stage"], {})
    for name, value in line.items():
      if name == "step_seconds" or name.startswith("weight/"):
        stage.setdefault(name.replace("weight/", "weight_"), []).append(value)
  return {stage: {k: sum(v) / len(v) for k, v in means.items()}
          for stage, means in found.items()}


def by_image(samples: Path) -> dict[str, list[float]]:
  """Summed scores and questions of each image, from a per-sample file."""
  counts: dict[int, list[float]] = {}
  for line in samples.read_text(encoding="utf-8").splitlines():
    row = json.loads(line)
    entry = counts.setdefault(row["image"], [0, 0])
    entry[0] += row["score"] if "score" in row else int(row["right"])
    entry[1] += 1
  images = sorted(counts)
  return {"image": images, "right": [counts[i][0] for i in images],
          "n": [counts[i][1] for i in images]}


def signature(cell: Cell) -> str:
  """Equal for cells that would run alike.

  It covers the config as it is resolved, so that a cell whose config file
  was edited is another cell.
  """
  config = plain(load_config(cell.config, overrides(cell)))
  own = dataclasses.asdict(cell)
  for name in ("prepared", "more"):  # a cell that has none is as ever
    if not own[name]:
      del own[name]
  text = json.dumps([own, config], sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]
