"""`align-jax train`: trains a config, or goes on with a run."""

import argparse
import json

from align_jax.cli.stdout import kept_clean
from align_jax.config import load_config
from align_jax.parallel.distributed import initialise, is_main
from align_jax.validate import validate

DESCRIPTION = """\
Trains a config in a folder. Where the folder holds a run already, goes on
with it, bit for bit; where that run is finished, says so.

  align-jax train --config quickstart --workdir runs/quickstart
  align-jax train --config mini/clip --workdir runs/clip \\
    --config.stages[0].steps=20 --config.data.rows=16

Ctrl-C saves and stops; the same command goes on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
      "--config", required=True, metavar="FILE[:arg]",
      help="a config file or the name of a shipped one; single fields are "
      "set with --config.FIELD=VALUE")
  parser.add_argument("--workdir", required=True, metavar="DIR",
                      help="the folder of the run, shared by all processes")
  parser.add_argument("--json", action="store_true",
                      help="print the result as one JSON object")


def run(args: argparse.Namespace) -> int:
  with kept_clean():
    initialise()  # before anything that may make an array
    from align_jax.train.loop import result_line, train

    config = validate(load_config(args.config, args.overrides), args.config)
    result = train(config, args.workdir)
  if is_main():
    if args.json:
      print(json.dumps(result))
    else:
      if result.get("resumed"):
        print("this run is finished already; nothing to do")
      print(result_line(result))
  return 0 if result["finished"] else 1
