"""Studies: the cells of a controlled comparison, run one by one.

A study file has `get_study() -> Study`. What is compared, by which metric and
against which control is written there before anything runs:

  DIR/cells/NAME/run      the run of a cell, as `align-jax train` makes it
  DIR/cells/NAME/cell.json  written when the cell is done
  results/NAME.json       all cells, the contrast, and what tables need
"""

import dataclasses
import fnmatch
import hashlib
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from align_jax.config import find_config, load_config, plain
from align_jax.errors import InputError
from align_jax.evals.contrast import contrast


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run: train, then evaluate.

  Attributes:
    arm: what is compared, such as "mlp".
    config: "FILE[:arg]" or "NAME[:arg]", for `train`.
    seed: of initialisation and data order; arms are paired by it.
    overrides: config fields, {"stages[0].steps": 10}.
    evaluate: further options of `evaluate`, {"limit": 500, "noise": [0.5]}.
    exploratory: outside the primary contrast; printed as such, never ranked.
  """
  arm: str
  config: str
  seed: int = 0
  overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
  evaluate: dict[str, Any] = dataclasses.field(default_factory=dict)
  exploratory: bool = False


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of the table.

  Attributes:
    title: of the column.
    key: path of the figure, such as "train/steps" or "noise/0.5".
    kind: "percent", "count", "seconds" or "number".
    interval: path of a 95 % interval, shown where an arm has one seed.
  """
  title: str
  key: str
  kind: str = "percent"
  interval: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
  """A comparison, designed before it is run.

  Attributes:
    name: of its results file and of its table in the README.
    question: what it asks.
    primary: the two arms of the one primary contrast.
    cells: by name.
    columns: of the table.
    metric: that the contrast is about.
    control: what is reached without the image.
    arms: what an arm is, the title of the first column.
    notes: data, decoder and budget, to stand beside the table.
  """
  name: str
  question: str
  primary: tuple[str, str]
  cells: dict[str, Cell]
  columns: tuple[Column, ...]
  metric: str = "accuracy"
  control: str = "question_prior_accuracy"
  arms: str = "connector"
  notes: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    primary = {c.arm for c in self.cells.values() if not c.exploratory}
    faults = [f"primary arm {arm!r} has no cell that is not exploratory"
              for arm in self.primary if arm not in primary]
    faults += [f"cell name {name!r} is no plain file name"
               for name in self.cells
               if not name.replace("-", "").replace("_", "").isalnum()]
    taken: dict[tuple[str, int, bool], str] = {}
    for name, cell in self.cells.items():
      twin = taken.setdefault((cell.arm, cell.seed, cell.exploratory), name)
      if twin != name:
        faults.append(f"cells {twin!r} and {name!r} are the same arm and seed")
    if faults:
      raise InputError(f"study {self.name!r}: " + "; ".join(faults))


def load_study(file: str | Path) -> Study:
  """Reads a study file, given by path or, as a config is, by name.

  Raises:
    InputError: no such file or name, or it gives no `Study`.
  """
  path = find_config(str(file), "study")
  spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_study"):
    raise InputError(f"{path} has no get_study()")
  study = module.get_study()
  if not isinstance(study, Study):
    raise InputError(f"{path}: get_study() gives {type(study).__name__}, not "
                     "align_jax.evals.study.Study")
  return study


def overrides(cell: Cell) -> list[str]:
  """Of the cell's config, "a.b=value" each; the seed is one of them."""
  return [f"{k}={v}" for k, v in {"seed": cell.seed, **cell.overrides}.items()]


def commands(cell: Cell, run: Path) -> list[list[str]]:
  """The two command lines of a cell, as a person would type them."""
  train = ["train", "--config", cell.config, "--workdir", str(run),
           *(f"--config.{o}" for o in overrides(cell))]
  evaluate = ["evaluate", str(run), "--json"]
  for name, value in cell.evaluate.items():
    for one in value if isinstance(value, Sequence) and not isinstance(
        value, str) else [value]:
      evaluate += [f"--{name.replace('_', '-')}", str(one)]
  return [["align-jax", *train], ["align-jax", *evaluate]]


Runner = Callable[[list[str]], str]


def in_a_process(command: list[str]) -> str:
  """Runs `align-jax ...` in a process of its own; gives its standard output.

  Raises:
    RuntimeError: it failed; what it said stands above, on standard error.
  """
  done = subprocess.run(
      [sys.executable, "-m", "align_jax.cli.main", *command[1:]],
      stdout=subprocess.PIPE, text=True, env=os.environ.copy())
  if done.returncode:
    raise RuntimeError(f"{shlex.join(command)} failed with code "
                       f"{done.returncode}")
  return done.stdout


def run_cell(study: Study, name: str, workdir: Path,
             runner: Runner = in_a_process,
             progress: Callable[[str], None] = lambda line: None,
             ) -> dict[str, Any]:
  """Trains and evaluates a cell, unless it is done already.

  A cell that was done with other settings, be it the study's or its
  config's, is run anew; what was done is moved aside, never deleted.
  """
  cell = study.cells[name]
  now = signature(cell)
  folder = workdir / "cells" / name
  done = folder / "cell.json"
  if done.is_file():
    record = json.loads(done.read_text(encoding="utf-8"))
    if record["signature"] == now:
      return record
    aside = folder.with_name(f"{name}.{record['signature']}")
    while aside.exists():
      aside = aside.with_name(f"{aside.name}.older")
    folder.rename(aside)
    progress(f"cell {name} was run with other settings than the study or its "
             f"config {cell.config} has now, so it is run anew; what was done "
             f"is kept in {aside}")
  folder.mkdir(parents=True, exist_ok=True)
  train, evaluate = commands(cell, folder / "run")
  # The training's own output belongs to the person watching.
  print(runner(train), end="", file=sys.stderr)
  figures = json.loads(runner(evaluate))
  record = {
      "arm": cell.arm, "seed": cell.seed, "exploratory": cell.exploratory,
      "signature": now,
      "commands": [shlex.join(train), shlex.join(evaluate)],
      "commit": figures.pop("commit", "unknown"),  # of the evaluation
      "train_commit": figures.get("train", {}).get("commit", "unknown"),
      "device": figures.pop("device", "unknown"),
      "versions": figures.pop("versions", {}),
      "figures": figures}
  samples = figures.pop("samples", None)
  if samples:
    record["by_image"] = by_image(Path(samples))
  scratch = done.with_suffix(".tmp")
  scratch.write_text(json.dumps(record, indent=1), encoding="utf-8")
  scratch.replace(done)
  return record


def by_image(samples: Path) -> dict[str, list[int]]:
  """Right answers and questions of each image, from a per-sample file."""
  counts: dict[int, list[int]] = {}
  for line in samples.read_text(encoding="utf-8").splitlines():
    row = json.loads(line)
    entry = counts.setdefault(row["image"], [0, 0])
    entry[0] += int(row["right"])
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
  text = json.dumps([dataclasses.asdict(cell), config], sort_keys=True,
                    default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def collect(study: Study, records: dict[str, dict[str, Any]],
            command: str) -> dict[str, Any]:
  """The results file: what was planned, what was found, what it says."""
  results = {
      "name": study.name, "question": study.question,
      "primary": list(study.primary), "metric": study.metric,
      "control": study.control, "arms": study.arms,
      "notes": list(study.notes), "command": command,
      "columns": [dataclasses.asdict(c) for c in study.columns],
      "planned": list(study.cells),
      "exploratory": [n for n, c in study.cells.items() if c.exploratory],
      "cells": {name: records[name] for name in study.cells
                if name in records}}
  results["contrast"] = contrast(results)
  return results


def run_study(
    study: Study,
    workdir: str | Path,
    results_dir: str | Path = "results",
    cells: str = "*",
    command: str = "",
    runner: Runner = in_a_process,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
  """Runs the cells whose names match, and writes the results after each.

  Args:
    study: the study.
    workdir: where the cells' runs are.
    results_dir: where NAME.json goes; cells found there and not run now stay.
    cells: glob over cell names.
    command: as typed, for the table.
    runner: runs a command line and gives its standard output.
    progress: told what happens.

  Raises:
    InputError: no cell has such a name.
  """
  chosen = [n for n in study.cells if fnmatch.fnmatchcase(n, cells)]
  if not chosen:
    raise InputError(f"no cell of {study.name} matches {cells!r} "
                     f"(cells: {', '.join(study.cells)})")
  path = Path(results_dir) / f"{study.name}.json"
  records = {}
  if path.is_file():
    earlier = json.loads(path.read_text(encoding="utf-8"))["cells"]
    records = {n: r for n, r in earlier.items() if n in study.cells
               and r["signature"] == signature(study.cells[n])}
    for name in study.cells:
      if name in earlier and name not in (*records, *chosen):
        progress(f"cell {name} in {path} was run with other settings than "
                 "the study or its config has now; it is left out until it "
                 "is run anew")
  results = collect(study, records, command)
  for at, name in enumerate(chosen, 1):
    progress(f"{study.name}: cell {name} ({at} of {len(chosen)})")
    records[name] = run_cell(study, name, Path(workdir), runner, progress)
    results = collect(study, records, command)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
  return results
