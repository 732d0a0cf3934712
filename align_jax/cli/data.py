"""`align-jax data show | build`: look at examples, write data sets."""

import argparse
import json
import random
from typing import Any

from align_jax.cli.stdout import kept_clean
from align_jax.config import load_config
from align_jax.errors import InputError
from align_jax.registry import nearest

DESCRIPTION = """Looks at training data, and writes data sets.

  align-jax data show --config FILE[:arg] [--n 3] [--source NAME]
      prints examples as the model reads them, one token a line; "*" marks
      what is supervised
  align-jax data build easy_vqa [--data-dir DIR]
      writes easy-VQA from the package easy-vqa to array_record files
"""

# Data sets that can be written: name -> function of the folder.
BUILDERS = {"easy_vqa": "align_jax.data.easy_vqa.source:prepare"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of both forms."""
  forms = parser.add_subparsers(dest="form", required=True,
                                metavar="show|build")
  show = forms.add_parser("show", help="print rendered examples")
  show.add_argument("--config", required=True, metavar="FILE[:arg]",
                    help="a config file, or the name of a shipped one")
  show.add_argument("--n", type=int, default=3,
                    help="how many examples of each source (default 3)")
  show.add_argument("--source", default="", metavar="NAME",
                    help="one of data.sources (default: each)")
  show.add_argument("--json", action="store_true",
                    help="print one JSON object and nothing else")
  build = forms.add_parser("build", help="write a data set")
  build.add_argument("name", metavar="NAME",
                     help=f"one of {', '.join(sorted(BUILDERS))}")
  build.add_argument("--data-dir", default="", metavar="DIR",
                     help="default: align_jax/datasets in the user's cache")
  build.add_argument("--json", action="store_true",
                     help="print one JSON object and nothing else")


def run(args: argparse.Namespace) -> int:
  """Runs one of the forms; 0 is success."""
  with kept_clean():
    found, lines = {"show": _show, "build": _build}[args.form](args)
  print(json.dumps(found) if args.json else "\n".join(lines))
  return 0


# What a form found: as one object, and as lines for people.
Found = tuple[dict[str, Any], list[str]]


def _show(args: argparse.Namespace) -> Found:
  """Examples at seeded places of each source."""
  from align_jax.build import build
  from align_jax.data.images import ImageReader
  from align_jax.data.pipeline import open_source
  from align_jax.data.render import Renderer, show
  from align_jax.parallel.layout import Layout
  from align_jax.validate import validate

  config = validate(load_config(args.config, args.overrides), args.config)
  names = [args.source] if args.source else list(config.data.sources)
  for name in names:
    if name not in config.data.sources:
      raise InputError(f"no source {name!r} in data.sources"
                       f"{nearest(name, config.data.sources)}")
  parts = build(config.model, Layout())
  renderer = Renderer(parts.tokenizer, config.data.template,
                      parts.tokens_per_image, config.model.prompt_tokens)
  reader = ImageReader(parts.processor, parts.image_size,
                       config.data.max_pixels)
  shown: list[dict[str, Any]] = []
  lines: list[str] = []
  for name in names:
    source = open_source(name, config.data.sources[name])
    places = sorted(random.Random(config.seed).sample(
        range(len(source)), min(args.n, len(source))))
    lines.append(f"source {name}: {len(source):,} examples")
    for place in places:
      seen = _one(source, place, config.data, renderer, reader)
      rendered = seen.pop("rendered")
      shown.append({"source": name, **seen})
      lines.append(f"\n{seen['id']} ({seen['origin']})")
      if rendered is not None:
        lines.append(show(rendered, parts.tokenizer))
      if seen["refused"]:
        lines.append(f"REFUSED in training: {seen['refused']}")
  return {"examples": shown}, lines


def _one(source: Any, place: int, config: Any, renderer: Any,
         reader: Any) -> dict[str, Any]:
  """One example, rendered if it can be, and why training would refuse it."""
  from align_jax.data import BadSample
  from align_jax.data.images import BadImage
  from align_jax.data.rows import over_budget

  seen = {"id": "", "origin": f"example {place}", "refused": "",
          "rendered": None}
  try:
    example = source[place]
    seen |= {"id": example["id"], "origin": example["origin"]}
    rendered = renderer(example)
    seen |= {"rendered": rendered, "text": rendered.text,
             "tokens": rendered.tokens.tolist(),
             "loss_weights": rendered.loss_weights.tolist(),
             "visual": rendered.visual.tolist(),
             "refused": over_budget(rendered, config)}
    for image in rendered.images:
      reader(image)
  except BadSample as bad:
    seen |= {"origin": bad.origin, "refused": bad.reason}
  except BadImage as bad:
    seen["refused"] = str(bad)
  return seen


def _build(args: argparse.Namespace) -> Found:
  """Writes a data set, unless it is there."""
  import importlib
  if args.name not in BUILDERS:
    raise InputError(f"no data set {args.name!r}"
                     f"{nearest(args.name, BUILDERS)} "
                     f"(known: {', '.join(sorted(BUILDERS))})")
  module, function = BUILDERS[args.name].split(":")
  builder = getattr(importlib.import_module(module), function)(args.data_dir)
  splits = {name: split.num_examples
            for name, split in builder.info.splits.items()}
  counts = ", ".join(f"{n} {c:,}" for n, c in splits.items())
  return ({"folder": str(builder.data_dir), "splits": splits},
          [f"{args.name} in {builder.data_dir}: {counts} images"])
