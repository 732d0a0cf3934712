"""`align-jax generate`: one answer of a run, to a question of yours."""

import argparse

from align_jax.cli import which_run
from align_jax.cli.stdout import kept_clean

DESCRIPTION = """\
Answers a prompt, with or without images.

  align-jax generate runs/quickstart --image shape.png \\
    --prompt "what color is the circle?"
  align-jax generate runs/quickstart --prompt "The capital of France is"

Images come first, unless the prompt has an <image> for each of them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  which_run.add_run(parser)
  parser.add_argument("--prompt", required=True, help="what the user says")
  parser.add_argument("--image", action="append", default=[], metavar="FILE",
                      help="may be given several times")
  parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N",
                      help="answers are cut there (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
  source = which_run.source(args)
  with kept_clean():
    from align_jax.api import load_run
    loaded = load_run(source, unfinished=args.unfinished)
    answer = loaded.generate(args.image, args.prompt, args.max_new_tokens)
  if args.json:
    which_run.print_json({"prompt": args.prompt, "images": args.image,
                          "answer": answer, "step": loaded.step})
  else:
    print(answer)
  return 0
