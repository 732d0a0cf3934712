"""`align-jax study`: runs the cells of a comparison, or prints its table."""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from align_jax.cli.stdout import kept_clean
from align_jax.evals.workers import Workers

DESCRIPTION = """\
Runs a study: each cell is a training run and its evaluation. A study that was
stopped goes on where it was. Results go to results/NAME.json after each cell;
tables come from that file alone.

  align-jax study mini/study_connectors --workdir runs/connectors
  align-jax study configs/mini/study_connectors.py --workdir runs/connectors \\
    --cells "mlp*" --jobs 2
  align-jax study mini/study_connectors --table"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("file", metavar="FILE",
                      help="a Python file with get_study(), or the name of "
                      "a shipped one")
  parser.add_argument("--workdir", metavar="DIR",
                      help="where the cells' runs are")
  parser.add_argument("--cells", default="*", metavar="GLOB",
                      help="only cells whose names match")
  parser.add_argument("--jobs", type=int, default=1, metavar="N",
                      help="cells at a time, each with its share of the "
                      "processors; small cells finish sooner so (default: "
                      "%(default)s)")
  parser.add_argument("--results", default="results", metavar="DIR",
                      help="where NAME.json goes (default: %(default)s)")
  parser.add_argument("--table", action="store_true",
                      help="print the table of the results there are, and run "
                      "nothing")
  parser.add_argument("--readme", metavar="FILE",
                      help="afterwards write the table between the marks "
                      "<!-- results: NAME --> and <!-- end --> of this file")
  parser.add_argument("--json", action="store_true",
                      help="print the results as one JSON object")


def run(args: argparse.Namespace) -> int:
  from align_jax.evals import tables

  with kept_clean():
    results = find_results(args)
  if args.json:
    print(json.dumps(results, indent=1))
  else:
    print(tables.table(results), end="")
  return 0


def find_results(args: argparse.Namespace) -> dict[str, Any]:
  """Runs the study, or reads its results; fills the README if asked to."""
  from align_jax.errors import InputError
  from align_jax.evals import study, tables

  loaded = study.load_study(args.file)
  path = Path(args.results) / f"{loaded.name}.json"
  if args.table:
    if not path.is_file():
      raise InputError(f"no results yet: there is no {path}")
    results = json.loads(path.read_text(encoding="utf-8"))
  else:
    if not args.workdir:
      raise InputError("give --workdir, where the cells' runs shall be, or "
                       "--table for the table alone")
    command = ["align-jax", "study", args.file, "--workdir", args.workdir]
    with (Workers(args.jobs, args.workdir) as runner,
          Workers(1, args.workdir) as preparer):
      # What is prepared has all processors, one thing after the other.
      results = study.run_study(
          loaded, args.workdir, args.results, args.cells, shlex.join(command),
          runner=runner, jobs=args.jobs, preparer=preparer,
          progress=lambda line: print(line, file=sys.stderr))
  if args.readme:
    readme = Path(args.readme)
    text = readme.read_text(encoding="utf-8")
    if f"<!-- results: {loaded.name} -->" not in text:
      raise InputError(f"{readme} has no mark <!-- results: {loaded.name} "
                       "--> ... <!-- end -->")
    readme.write_text(tables.fill(text, args.results), encoding="utf-8")
  return results
