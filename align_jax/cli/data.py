"""`align-jax data ...`: look at examples, write data and what is made of it."""

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
  align-jax data tokenizer --source JSON [--source JSON] --size V --out DIR
      learns a byte-level BPE vocabulary from what the sources' examples say
  align-jax data features --tower WEIGHTS --source JSON --out DIR
      runs a frozen tower over a source's images, once for all runs whose
      config has data.features = DIR
"""

# Data sets that can be written: name -> function of the folder and of the
# options that this data set has; it gives (what --json prints, a line).
BUILDERS = {"easy_vqa": "align_jax.cli.data:easy_vqa",
            "linked_images": "align_jax.cli.data:linked_images",
            "icon_words": "align_jax.cli.data:icon_words"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of both forms."""
  forms = parser.add_subparsers(dest="form", required=True,
                                metavar="show|build|words|tokenizer|features")
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
  tokenizer = forms.add_parser("tokenizer", help="learn a vocabulary")
  tokenizer.add_argument("--source", required=True, type=json.loads,
                         metavar="JSON", action="append",
                         help="a data source; may be given several times")
  tokenizer.add_argument("--size", type=int, required=True, metavar="V",
                         help="tokens in all")
  tokenizer.add_argument("--ends", action="store_true",
                         help="add <eos> by itself, for a CLIP's texts")
  features = forms.add_parser("features", help="run a frozen tower, once")
  features.add_argument("--tower", required=True, metavar="WEIGHTS",
                        help="as model.tower.weights")
  features.add_argument("--layer", type=int, default=-1,
                        help="as model.tower.layer (default -1)")
  features.add_argument("--class-token", action="store_true",
                        help="as model.tower.class_token")
  features.add_argument("--source", required=True, type=json.loads,
                        metavar="JSON", action="append",
                        help="a data source with images; may be given several "
                        "times")
  for form in (tokenizer, features):
    form.add_argument("--out", required=True, metavar="DIR",
                      help="folder to be made")
  for form in (words, tokenizer, features):
    form.add_argument("--json", action="store_true",
                      help="print one JSON object and nothing else")


def run(args: argparse.Namespace) -> int:
  """Runs one of the forms; 0 is success."""
  with kept_clean():
    found, lines = {"show": _show, "build": _build, "words": _words,
                    "tokenizer": _tokenizer,
                    "features": _features}[args.form](args)
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


def icon_words(data_dir: str) -> tuple[dict[str, Any], str]:
  """Writes the words of icon scenes' things, for labels."""
  from align_jax.data.icon_scenes import concepts

  if not data_dir:
    raise InputError("icon_words needs --data-dir, where words.txt shall lie")
  folder = Path(data_dir)
  folder.mkdir(parents=True, exist_ok=True)
  file = folder / "words.txt"
  file.write_text("\n".join(concepts()) + "\n", encoding="utf-8")
  return ({"file": str(file), "words": len(concepts())},
          f"{file}: the {len(concepts())} words of icon scenes")


def _opened(source: Any) -> Any:
  """A source that is given as JSON."""
  from align_jax.data import SOURCES
  from align_jax.validate import check_source

  check_source(source, "--source")
  return SOURCES.get(source["kind"])(**source.get("options", {}))


def _tokenizer(args: argparse.Namespace) -> Found:
  """Learns a vocabulary and writes it for transformers."""
  from align_jax.data.bpe import train_bpe

  made = train_bpe([_opened(s) for s in args.source], args.size, args.ends)
  made.save_pretrained(args.out)
  return ({"folder": args.out, "tokens": len(made)},
          [f"{args.out}: a vocabulary of {len(made):,} tokens"])


def _features(args: argparse.Namespace) -> Found:
  """Keeps a tower's features of a source's images."""
  from tqdm import tqdm

  from align_jax.data.features import write

  with tqdm(desc="images", unit="image", dynamic_ncols=True) as bar:
    made = write(args.tower, [_opened(s) for s in args.source], args.out,
                 layer=args.layer, class_token=args.class_token,
                 progress=bar.update)
  return made, [f"{args.out}: features {made['shape']} of {args.tower}"]


def _words(args: argparse.Namespace) -> Found:
  """Writes the word list of a source's answers."""
  from tqdm import tqdm

  from align_jax.labels.wordlist import word_list

  source = _opened(args.source)
  out = Path(args.out)
  if out.exists():
    raise InputError(f"{out} exists; give another name or remove it")
  said = (turn["content"] for i in tqdm(range(len(source)), desc="examples")
          for turn in source[i]["conversation"] if turn["role"] == "assistant")
  words = word_list(said, args.least, args.general)
  out.write_text("\n".join(words) + "\n", encoding="utf-8")
  return ({"file": str(out), "words": len(words), "examples": len(source)},
          [f"{out}: {len(words):,} words of {len(source):,} examples"])
