"""`align-jax VERB ...`: finds the verb's file and shows errors plainly."""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from align_jax.errors import InputError
from align_jax.registry import nearest

# Each module has DESCRIPTION, add_arguments(parser) and run(args) -> int.
VERBS: dict[str, tuple[str, str]] = {
    "train": ("align_jax.cli.train", "train a model, or go on with a run"),
    "evaluate": ("align_jax.cli.evaluate", "score a run beside baselines"),
    "inspect": ("align_jax.cli.inspect", "show what visual tokens mean"),
    "generate": ("align_jax.cli.generate", "answer a question on an image"),
    "label": ("align_jax.cli.label", "label patches with words, for SEA"),
    "study": ("align_jax.cli.study", "run the cells of a comparison"),
    "plan": ("align_jax.cli.plan", "say what a run will take, anywhere"),
    "data": ("align_jax.cli.data", "show rendered examples, build data"),
    "convert": ("align_jax.cli.convert", "write and check files of weights"),
    "bench": ("align_jax.cli.bench", "measure speed and memory"),
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one verb; 0 done, 1 failed, 2 the input is at fault."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if not argv or argv[0] in ("-h", "--help"):
    print(usage())
    return 0 if argv else 2
  verb, rest = argv[0], argv[1:]
  if verb not in VERBS:
    print(f"align-jax: no verb {verb!r}{nearest(verb, VERBS)}\n\n{usage()}",
          file=sys.stderr)
    return 2
  if os.getcwd() not in sys.path:  # for a config's imports, as `python -m`
    sys.path.insert(0, os.getcwd())
  module = importlib.import_module(VERBS[verb][0])
  parser = argparse.ArgumentParser(
      prog=f"align-jax {verb}", description=module.DESCRIPTION,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  module.add_arguments(parser)
  parser.add_argument("--debug", action="store_true",
                      help="show the traceback of an error")
  overrides, rest = split_overrides(rest)
  args = parser.parse_args(rest)
  if overrides and not hasattr(args, "config"):
    parser.error(f"{verb} takes no --config.{overrides[0]}")
  args.overrides = overrides
  try:
    code = module.run(args) or 0
    sys.stdout.flush()
    return code
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return 130
  except BrokenPipeError:  # whoever read, such as `head`, has enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except Exception as error:
    if args.debug or not deliberate(error):
      raise
    text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
    print(f"align-jax {verb}: {text}", file=sys.stderr)
    return 2 if isinstance(error, InputError) else 1


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """(["a.b=v", ...], the other arguments) from `--config.a.b=v` or `... v`."""
  overrides, others = [], []
  waiting = ""
  for argument in argv:
    if waiting:
      overrides.append(f"{waiting}={argument}")
      waiting = ""
    elif argument.startswith("--config."):
      field = argument.removeprefix("--config.")
      if "=" in field:
        overrides.append(field)
      else:
        waiting = field
    else:
      others.append(argument)
  return overrides + ([waiting] if waiting else []), others


def deliberate(error: Exception) -> bool:
  """Whether the error was raised by a `raise` of ours, with its own words.

  Such a message is written for the user. Anything else is a fault of the
  program, and then the traceback is what helps.
  """
  if isinstance(error, InputError):
    return True
  if not isinstance(error, ValueError | KeyError | OSError | RuntimeError):
    return False
  last = traceback.extract_tb(error.__traceback__)[-1]
  ours = Path(__file__).resolve().parents[1]
  return (Path(last.filename).resolve().is_relative_to(ours)
          and (last.line or "").lstrip().startswith("raise"))


def usage() -> str:
  width = max(map(len, VERBS))
  verbs = "\n".join(f"  {verb.ljust(width)}  {what}"
                    for verb, (_, what) in VERBS.items())
  return (f"usage: align-jax VERB ...\n\n{verbs}\n\n"
          "align-jax VERB --help explains a verb.")


if __name__ == "__main__":
  sys.exit(main())
