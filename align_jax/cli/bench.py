"""`align-jax bench`: ratios with goals, and what a step costs."""

import argparse
import json
import sys

from align_jax.cli.stdout import kept_clean
from align_jax.config import load_config
from align_jax.errors import InputError
from align_jax.validate import validate

DESCRIPTION = """\
Measures on the devices at hand. Whatever is compared runs in turns in one
process, and the figure is the median of the paired ratios.

  align-jax bench                        lists the benchmarks
  align-jax bench chunked_loss --json
  align-jax bench --config quickstart    a step of a config
  align-jax bench --vs hf                beside transformers + torch"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("names", nargs="*", metavar="NAME",
                      help="benchmarks to run; without any they are listed")
  parser.add_argument("--config", metavar="FILE[:arg]",
                      help="a config whose training step is measured; single "
                      "fields are set with --config.FIELD=VALUE")
  parser.add_argument("--vs", choices=("hf",), default="",
                      help="run the same shapes in transformers + torch too")
  parser.add_argument("--synthetic", action="store_true",
                      help="made-up batches; the config's data is not read")
  parser.add_argument("--rounds", type=int, default=15, metavar="N",
                      help="timed rounds (default: %(default)s)")
  parser.add_argument("--json", action="store_true",
                      help="print the figures as one JSON object")


def run(args: argparse.Namespace) -> int:
  from align_jax.bench import BENCHMARKS, Options, report

  if args.rounds < 1:
    raise InputError(f"--rounds {args.rounds}: at least 1 is needed")
  names = args.names or chosen(args)
  if not names:
    width = max(map(len, BENCHMARKS.names()))
    for name in BENCHMARKS.names():
      about = (BENCHMARKS.get(name).__doc__ or "").strip().split("\n")[0]
      print(f"{name.ljust(width)}  {about}")
    return 0
  unknown = []
  for name in names:
    try:
      BENCHMARKS.get(name)
    except KeyError as error:
      unknown.append(str(error.args[0]))
  if unknown:
    raise InputError("\n".join(unknown))
  with kept_clean():
    config = (validate(load_config(args.config, args.overrides), args.config)
              if args.config else None)
    options = Options(rounds=args.rounds, config=config, versus=args.vs,
                      synthetic=args.synthetic)
    print(report.heading(), file=sys.stderr)
    figures = []
    for name in names:
      for figure in BENCHMARKS.get(name)(options):
        figures.append(figure)
        print(report.line(figure), file=sys.stderr, flush=True)
  if args.json:
    print(json.dumps(report.as_json(figures), indent=1))
  else:
    print(report.heading())
    for figure in figures:
      print(report.line(figure))
  return 1 if any(f.failed for f in figures) else 0


def chosen(args: argparse.Namespace) -> list[str]:
  """What runs when no benchmark is named."""
  if args.config:
    return ["step", "train_step"] if args.vs else ["step"]
  return ["train_step", "first_step", "generate"] if args.vs else []
