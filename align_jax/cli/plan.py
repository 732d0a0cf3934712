"""`align-jax plan`: whether a run fits, what it costs, what bounds it."""

import argparse
import importlib.util
import json
import sys

from align_jax.cli.stdout import kept_clean
from align_jax.config import load_config
from align_jax.validate import validate

DESCRIPTION = """\
Compiles each stage's training step for devices that need not be here, and
says what it found: memory, FLOPs, transfers between devices, and the ceiling
on MFU. No array is made and no weights are read.

  align-jax plan --config scale/llama31_70b --topology v5p:8x8x8
  align-jax plan --config quickstart --topology cpu:1

Exits with 1 where a stage does not fit, and says what to change."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
      "--config", required=True, metavar="FILE[:arg]",
      help="a config file or the name of a shipped one; single fields are "
      "set with --config.FIELD=VALUE")
  parser.add_argument(
      "--topology", default="", metavar="NAME",
      help="v5e:16x16 and the like, cpu:8, or here for the devices at hand; "
      "default: the config's plan.topology")
  parser.add_argument("--stage", default="", metavar="NAME",
                      help="one stage; default: all")
  parser.add_argument(
      "--keep", default="", metavar="FOLDER",
      help="keep what the compiler makes of each program here, and read what "
      "was kept of one before")
  parser.add_argument("--json", action="store_true",
                      help="print the plan as one JSON object")


def run(args: argparse.Namespace) -> int:
  config = validate(load_config(args.config, args.overrides), args.config)
  with kept_clean():
    from align_jax.plan.whole import plan

    result, verdicts = plan(config, args.topology, args.stage, args.config,
                            args.keep, args.overrides)
  if args.json:
    print(json.dumps(result))
  else:
    from align_jax.plan.report import text
    print(text(result, verdicts, config.plan.misses))
  if not result["compiled"]:
    from align_jax.parallel.topology import INSTALL
    reason = ("libtpu is not installed"
              if importlib.util.find_spec("libtpu") is None
              else "no compiler for these devices")
    print(f"\nnot compiled: {reason}. {INSTALL} gives the compiler's own "
          "figures too.", file=sys.stderr)
  return 0 if result["fits"] else 1
