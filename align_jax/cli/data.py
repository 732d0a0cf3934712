"""`align-jax data show | build | words`: look at examples, write data."""

import argparse
import json
import random
from pathlib import Path
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
  align-jax data build linked_images --data-dir DIR [--samples 69000]
      draws sets of images that share one thing: an open stand-in for SAM's
      unpublished MmLINK; give the same command again to go on
  align-jax data words --source JSON --out words.txt [--least 10]
      writes the frequent nouns, adjectives and verbs of what a source's
      examples say: a word list for `align-jax label`
"""

# Data sets that can be written: name -> function of the folder and of the
# options that this data set has; it gives (what --json prints, a line).
BUILDERS = {"easy_vqa": "align_jax.cli.data:easy_vqa",
            "linked_images": "align_jax.cli.data:linked_images"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of both forms."""
  forms = parser.add_subparsers(dest="form", required=True,
                                metavar="show|build|words")
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
                     help="default, for easy_vqa: align_jax/datasets in the "
                     "user's cache")
  for option, words in (("samples", "how many"), ("seed", "of all draws"),
                        ("workers", "processes that draw")):
    build.add_argument(f"--{option}", type=int, help=words)
  build.add_argument("--json", action="store_true",
                     help="print one JSON object and nothing else")
  words = forms.add_parser("words", help="write a word list")
  words.add_argument("--source", required=True, type=json.loads,
                     metavar="JSON",
                     help='a data source, {"kind": ..., "options": {...}}')
  words.add_argument("--out", required=True, metavar="FILE",
                     help="the list, one word a line")
  words.add_argument("--least", type=int, default=10,
                     help="words that are rarer are left out (default 10)")
  words.add_argument("--general", default="", metavar="NAME",
                     help="a list of english-words to add: gcide or web2")
  words.add_argument("--json", action="store_true",
                     help="print one JSON object and nothing else")


def run(args: argparse.Namespace) -> int:
  """Runs one of the forms; 0 is success."""
  with kept_clean():
    found, lines = {"show": _show, "build": _build,
                    "words": _words}[args.form](args)
  print(json.dumps(found) if args.json else "\n".join(lines))
  return 0


# What a form found: as one object, and as lines for people.
Found = tuple[dict[str, Any], list[str]]


def _show(args: argparse.Namespace) -> Found:
  """Examples at seeded places of each source."""
  from align_jax.build import build
  from align_jax.data.pipeline import open_source
  from align_jax.data.render import show
  from align_jax.parallel.layout import Layout
  from align_jax.validate import validate

  config = validate(load_config(args.config, args.overrides), args.config)
  names = [args.source] if args.source else list(config.data.sources)
  for name in names:
    if name not in config.data.sources:
      raise InputError(f"no source {name!r} in data.sources"
                       f"{nearest(name, config.data.sources)}")
  parts = build(config.model, Layout())
  renderer = parts.renderer(config.data)
  reader = parts.reader(config.data)
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
    images, places = reader.places(
        example["images"], renderer.tokens_per_image, renderer.frame)
    rendered = renderer({**example, "images": images}, places)
    seen |= {"rendered": rendered, "text": rendered.text,
             "tokens": rendered.tokens.tolist(),
             "loss_weights": rendered.loss_weights.tolist(),
             "visual": rendered.visual.tolist(),
             "refused": over_budget(rendered, config)}
    reader.slots(rendered.images)
  except BadSample as bad:
    seen |= {"origin": bad.origin, "refused": bad.reason}
  except BadImage as bad:
    seen["refused"] = str(bad)
  return seen


def _build(args: argparse.Namespace) -> Found:
  """Writes a data set, unless it is there."""
  import importlib
  import inspect
  if args.name not in BUILDERS:
    raise InputError(f"no data set {args.name!r}"
                     f"{nearest(args.name, BUILDERS)} "
                     f"(known: {', '.join(sorted(BUILDERS))})")
  module, function = BUILDERS[args.name].split(":")
  make = getattr(importlib.import_module(module), function)
  given = {name: value for name in ("samples", "seed", "workers")
           if (value := getattr(args, name)) is not None}
  for name in given:
    if name not in inspect.signature(make).parameters:
      raise InputError(f"{args.name} takes no --{name}")
  found, line = make(args.data_dir, **given)
  return found, [line]


def easy_vqa(data_dir: str) -> tuple[dict[str, Any], str]:
  """Writes easy-VQA."""
  from align_jax.data.easy_vqa.source import prepare

  builder = prepare(data_dir)
  splits = {name: split.num_examples
            for name, split in builder.info.splits.items()}
  counts = ", ".join(f"{n} {c:,}" for n, c in splits.items())
  return ({"folder": str(builder.data_dir), "splits": splits},
          f"easy_vqa in {builder.data_dir}: {counts} images")


def linked_images(data_dir: str, samples: int = 69_000, seed: int = 0,
                  workers: int = 1) -> tuple[dict[str, Any], str]:
  """Draws linked images, or goes on with them."""
  from tqdm import tqdm

  from align_jax.data.linked_images.build import Plan, build

  if not data_dir:
    raise InputError("linked_images needs --data-dir, where they shall lie")
  plan = Plan(samples=samples, seed=seed)
  with tqdm(desc="samples", total=samples, dynamic_ncols=True) as bar:
    build(plan, data_dir, workers, bar.update)
  return ({"folder": data_dir, "samples": samples, "shards": plan.shards},
          f"{samples:,} linked samples in {data_dir} ({plan.shards} shards); "
          f"look at {data_dir}/contact_sheet.png")


def _words(args: argparse.Namespace) -> Found:
  """Writes the word list of a source's answers."""
  from tqdm import tqdm

  from align_jax.data import SOURCES
  from align_jax.labels.wordlist import word_list
  from align_jax.validate import check_source

  check_source(args.source, "--source")
  out = Path(args.out)
  if out.exists():
    raise InputError(f"{out} exists; give another name or remove it")
  source = SOURCES.get(args.source["kind"])(**args.source.get("options", {}))
  said = (turn["content"] for i in tqdm(range(len(source)), desc="examples")
          for turn in source[i]["conversation"] if turn["role"] == "assistant")
  words = word_list(said, args.least, args.general)
  out.write_text("\n".join(words) + "\n", encoding="utf-8")
  return ({"file": str(out), "words": len(words), "examples": len(source)},
          [f"{out}: {len(words):,} words of {len(source):,} examples"])
