"""The run that a verb reads, and its result as JSON."""

import argparse
import json
from pathlib import Path
from typing import Any

from align_jax.errors import InputError
from align_jax.hub.locate import is_id, locate


def add_run(parser: argparse.ArgumentParser) -> None:
  """RUN, or --workdir RUN; --unfinished; --json."""
  parser.add_argument("run", nargs="?", metavar="RUN",
                      help="the folder of a run; or a Hugging Face folder or "
                      "id, whose results go to runs/hub/NAME")
  parser.add_argument("--workdir", metavar="RUN",
                      help="the same, as `train` has it")
  parser.add_argument("--unfinished", action="store_true",
                      help="take the last checkpoint of a run that is not at "
                      "its end")
  parser.add_argument("--json", action="store_true",
                      help="print one JSON object and nothing else")


def folder(args: argparse.Namespace) -> Path:
  """The run's folder.

  Raises:
    InputError: none is given, two are, or there is no run.
  """
  given = {str(Path(name)) for name in (args.run, args.workdir) if name}
  if len(given) != 1:
    raise InputError("which run? give RUN or --workdir RUN" if not given else
                     f"two runs were given: {' and '.join(sorted(given))}")
  path = Path(given.pop())
  if not path.is_dir():
    raise InputError(f"there is no folder {path}; align-jax train --workdir "
                     "makes a run")
  return path


def source(args: argparse.Namespace) -> str | Path:
  """The run's folder, or what `load_vlm` takes in its place.

  Raises:
    InputError: none is given, two are, or it is neither.
  """
  given = [name for name in (args.run, args.workdir) if name]
  if len(given) == 1 and is_id(given[0]):
    locate(given[0], texts_only=True)
    return given[0]
  return folder(args)


def print_json(value: Any) -> None:
  """One object on standard output."""
  print(json.dumps(value, indent=1))
