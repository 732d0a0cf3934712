"""Studies: the cells of a controlled comparison, run one by one.

A study file has `get_study() -> Study`. What is compared, by which metric and
against which control is written there before anything runs:

  DIR/prepared/NAME         what cells share; see evals/preparation.py
  DIR/cells/NAME/run        the run of a cell, as `align-jax train` makes it
  DIR/cells/NAME/cell.json  written when the cell is done
  DIR/tuning/ARM-RATE/      likewise, of a run that tries a learning rate
  results/NAME.json       all cells, the contrast, and what tables need

Learning rates are tried before any cell runs. Several cells may run at a
time, and several processes may run parts of one study: each of its folders
is in the hands of one of them.
"""

import dataclasses
import fnmatch
import functools
import importlib.util
import json
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

from align_jax.config import find_config
from align_jax.errors import InputError
from align_jax.evals.cells import Cell, Runner, run_cell, signature
from align_jax.evals.contrast import contrast, figure
from align_jax.evals.lock import alone
from align_jax.evals.preparation import Preparation, placed, prepare


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
class Tuning:
  """How each arm finds its learning rate: all alike, before any cell runs.

  Every rate is tried by one run with the seed of the arm's first cell; the
  best by the study's metric is the rate of all the arm's cells.

  Attributes:
    rates: tried.
    field: of the config that takes the rate,
      "stages[0].train.connector/*".
    overrides: config fields of these runs alone. They must evaluate on what
      is neither trained on nor reported:
      {"data.sources.train.options.split": "train[:90%]",
       "eval.options.split": "train[90%:]"}.
    evaluate: further options of `evaluate`.
    fixed: arms that train nothing, whose rate means nothing.
    like: arm -> another, at whose rate it runs untried.
  """
  rates: tuple[float, ...]
  field: str
  overrides: dict[str, Any]
  evaluate: dict[str, Any] = dataclasses.field(default_factory=dict)
  fixed: tuple[str, ...] = ()
  like: dict[str, str] = dataclasses.field(default_factory=dict)


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
    testable: two figures of the first primary arm, such as how often labels
      are true and how often by chance; unless the first is at least three
      times the second, what is asked cannot be tested. None: no such rule.
    arms: what an arm is, the title of the first column.
    notes: data, decoder and budget, to stand beside the table.
    tuning: of the learning rate; None where the config's is used.
    prepare: what all cells share, made once, in this order. "{work}" in the
      cells stands for the study's folder.
    picture: of the results, a PNG beside NAME.json; it gives None while there
      is too little to draw.
  """
  name: str
  question: str
  primary: tuple[str, str]
  cells: dict[str, Cell]
  columns: tuple[Column, ...]
  metric: str = "accuracy"
  control: str = "question_prior_accuracy"
  testable: tuple[str, str] | None = None
  arms: str = "connector"
  notes: tuple[str, ...] = ()
  tuning: Tuning | None = None
  prepare: tuple[Preparation, ...] = ()
  picture: Callable[[dict[str, Any]], bytes | None] | None = None

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
    arms = {c.arm for c in self.cells.values()}
    faults += [f"tuning runs arm {arm!r} like {other!r}, which no rate is "
               "tried for" for arm, other in (
                   self.tuning.like.items() if self.tuning else ())
               if other not in arms - {*self.tuning.fixed, *self.tuning.like}]
    if self.tuning and not self.tuning.overrides:
      faults.append("tuning has no overrides, so it would choose by what is "
                    "reported")
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


def in_folder(study: Study, work: Path, prepared: str = "") -> Study:
  """The study with its folder named in its cells and its tuning.

  Args:
    study: the study.
    work: its folder.
    prepared: signature of what the cells share.
  """
  tuning = study.tuning and dataclasses.replace(
      study.tuning, overrides=placed(study.tuning.overrides, work))
  return dataclasses.replace(study, tuning=tuning, cells={
      name: dataclasses.replace(
          cell, config=placed(cell.config, work), prepared=prepared,
          overrides=placed(cell.overrides, work),
          evaluate=placed(cell.evaluate, work))
      for name, cell in study.cells.items()})


def tune(study: Study, arms: Sequence[str], workdir: Path, runner: Runner,
         progress: Callable[[str], None], jobs: int = 1,
         ) -> dict[str, dict[str, Any]]:
  """Tries every learning rate on some arms.

  Returns:
    For each arm that is not fixed `scores` ({rate: the metric}), and `rate`,
    the one that is best; of equals, the lowest.
  """
  if not study.tuning:
    return {}
  tuning, scores = study.tuning, {}

  def attempt(arm: str, rate: float) -> None:
    progress(f"{study.name}: learning rate {rate:g} for {arm}")
    first = next(c for c in study.cells.values() if c.arm == arm)
    record = run_cell(
        dataclasses.replace(
            first, evaluate=tuning.evaluate, more={},
            overrides={**first.overrides, **tuning.overrides,
                       tuning.field: rate}),
        workdir / "tuning" / f"{arm}-{rate:g}", runner, progress)
    scores[arm, rate] = figure(record, study.metric)

  arms = [arm for arm in dict.fromkeys(_tried(study, arm) for arm in arms)
          if arm not in tuning.fixed]
  rates = sorted(tuning.rates)
  each(jobs, [functools.partial(attempt, arm, rate)
              for arm in arms for rate in rates])
  return {arm: {"scores": {f"{r:g}": scores[arm, r] for r in rates},
                "rate": max(rates, key=lambda r: scores[arm, r])}
          for arm in arms}


def each(jobs: int, work: Sequence[Callable[[], None]]) -> None:
  """Does all of it, `jobs` at a time, begun in this order.

  Raises:
    Exception: the first that was raised; what has not begun is left.
  """
  if jobs == 1:
    for one in work:
      one()
    return
  pool = futures.ThreadPoolExecutor(jobs)
  begun = [pool.submit(one) for one in work]
  try:
    for done in futures.as_completed(begun):
      done.result()
  finally:  # what is under way ends with its worker
    pool.shutdown(wait=False, cancel_futures=True)


def tuned(study: Study, name: str, rates: dict[str, dict[str, Any]]) -> Cell:
  """A cell with the learning rate that its arm was found to like."""
  cell = study.cells[name]
  arm = _tried(study, cell.arm)
  if arm not in rates:
    return cell
  return dataclasses.replace(cell, overrides={
      **cell.overrides, study.tuning.field: rates[arm]["rate"]})


def _tried(study: Study, arm: str) -> str:
  """The arm whose rate this one runs at."""
  return study.tuning.like.get(arm, arm) if study.tuning else arm


def collect(study: Study, records: dict[str, dict[str, Any]],
            command: str, rates: dict[str, dict[str, Any]] | None = None,
            ) -> dict[str, Any]:
  """The results file: what was planned, what was found, what it says."""
  results = {
      "name": study.name, "question": study.question,
      "primary": list(study.primary), "metric": study.metric,
      "control": study.control, "arms": study.arms,
      **({"testable": list(study.testable)} if study.testable else {}),
      "notes": list(study.notes), "command": command,
      "columns": [dataclasses.asdict(c) for c in study.columns],
      "planned": list(study.cells), "tuning": rates or {},
      "exploratory": [n for n, c in study.cells.items() if c.exploratory],
      "cells": {name: records[name] for name in study.cells
                if name in records}}
  results["contrast"] = contrast(results)
  return results


def run_study(
    study: Study,
    workdir: str | Path,
    results_dir: str | Path,
    cells: str = "*",
    command: str = "",
    *,
    runner: Runner,
    progress: Callable[[str], None] = lambda line: None,
    jobs: int = 1,
    preparer: Runner | None = None,
) -> dict[str, Any]:
  """Runs the cells whose names match, and writes the results after each.

  Args:
    study: the study.
    workdir: where the cells' runs are.
    results_dir: where NAME.json goes; cells found there and not run now stay.
    cells: glob over cell names.
    command: as typed, for the table.
    runner: runs a command line and gives its standard output; from `jobs`
      threads at a time.
    progress: told what happens.
    jobs: runs at a time.
    preparer: runs what prepares the cells, one command at a time; `runner`
      by default.

  Raises:
    InputError: no cell has such a name.
  """
  chosen = [n for n in study.cells if fnmatch.fnmatchcase(n, cells)]
  if not chosen:
    raise InputError(f"no cell of {study.name} matches {cells!r} "
                     f"(cells: {', '.join(study.cells)})")
  work = Path(workdir)
  prepared = prepare(study.prepare, work, preparer or runner, progress)
  study = in_folder(study, work, prepared)
  kept = _Results(study, Path(results_dir), work / "results.lock", command)
  rates = kept.rates | tune(study, [study.cells[n].arm for n in chosen], work,
                            runner, progress, jobs)
  for name in kept.begin(rates):
    if name not in chosen:
      progress(f"cell {name} in {kept.path} was run with other settings than "
               "the study or its config has now; it is left out until it is "
               "run anew")

  def run(at: int, name: str) -> None:
    progress(f"{study.name}: cell {name} ({at} of {len(chosen)})")
    kept.add(name, run_cell(tuned(study, name, rates), work / "cells" / name,
                            runner, progress))

  each(jobs, [functools.partial(run, at, name)
              for at, name in enumerate(chosen, 1)])
  return kept.results


class _Results:
  """The results file, as cells are added to it.

  Attributes:
    path: of the file.
    rates: learning rates that were found, by arm.
    results: what it says.
  """

  def __init__(self, study: Study, folder: Path, lock: Path, command: str):
    self.study, self.command = study, command
    self.path = folder / f"{study.name}.json"
    self._lock, self._mine = lock, threading.Lock()
    self._added: dict[str, dict[str, Any]] = {}
    self._signatures: dict[tuple[str, str], str] = {}
    self.rates = self._found().get("tuning", {}) if study.tuning else {}
    self.results: dict[str, Any] = {}

  def begin(self, rates: dict[str, dict[str, Any]]) -> list[str]:
    """Takes these rates; names of cells that were run with other settings."""
    self.rates = rates
    records, stale = self._valid(self._found())
    self.results = collect(self.study, records, self.command, rates)
    return stale

  def add(self, name: str, record: dict[str, Any]) -> None:
    """Writes the file with one more cell; from any thread."""
    # Another process may have added others since.
    with self._mine, alone(self._lock):
      self._added[name] = record
      found = self._found()
      self.rates = found.get("tuning", {}) | self.rates
      records, _ = self._valid(found)
      self.results = collect(self.study, records | self._added, self.command,
                             self.rates)
      self.path.parent.mkdir(parents=True, exist_ok=True)
      scratch = self.path.with_suffix(".tmp")
      scratch.write_text(json.dumps(self.results, indent=1) + "\n",
                         encoding="utf-8")
      scratch.replace(self.path)
      if self.study.picture and (drawn := self.study.picture(self.results)):
        self.path.with_suffix(".png").write_bytes(drawn)

  def _found(self) -> dict[str, Any]:
    if not self.path.is_file():
      return {"cells": {}}
    return json.loads(self.path.read_text(encoding="utf-8"))

  def _valid(self, found: dict[str, Any]
             ) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Records of cells as they are now, and names of those that are not."""
    known = {n: r for n, r in found["cells"].items() if n in self.study.cells}
    records = {n: r for n, r in known.items()
               if r["signature"] == self._signature(n)}
    return records, [n for n in known if n not in records]

  def _signature(self, name: str) -> str:
    """Of a cell with its rate; its config is read once."""
    cell = tuned(self.study, name, self.rates)
    key = name, json.dumps(cell.overrides, sort_keys=True, default=str)
    if key not in self._signatures:
      self._signatures[key] = signature(cell)
    return self._signatures[key]
