"""`align-jax convert`: a run's model in Hugging Face's layout."""

import argparse
import shlex
from pathlib import Path

from align_jax.cli.stdout import kept_clean
from align_jax.cli.which_run import add_run, folder, print_json
from align_jax.errors import InputError

DESCRIPTION = """Writes the model of a run for others to read.

  align-jax convert RUN FOLDER
      a CLIP run: config.json, model.safetensors, preprocessor_config.json and
      the tokenizer, which transformers' CLIPModel loads, and manifest.json:
      how it was made, and the SHA-256 of every image it was trained on

  align-jax convert RUN FOLDER --part connector
      the connector alone, which another config starts from with
      model.connector.weights=FOLDER

  align-jax convert RUN FOLDER --part decoder
      the language model with its tokenizer, LoRA adapters added in, which
      transformers loads
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds RUN, FOLDER, --part and --json."""
  add_run(parser)
  parser.add_argument("folder", metavar="FOLDER", help="where to write")
  parser.add_argument("--part", choices=("connector", "decoder"), default="",
                      help="of a vision-language model")


def run(args: argparse.Namespace) -> int:
  """Writes FOLDER; 0 is success.

  Raises:
    InputError: no finished run, or one whose model has no such layout.
  """
  with kept_clean():
    written = convert(folder(args), Path(args.folder), args.part)
  if args.json:
    print_json(written)
  elif args.part:
    print(f"{args.folder}: the {args.part} of {written['name']}, step "
          f"{written['steps']}")
  else:
    print(f"{args.folder}: {written['parameters']:,} parameters, trained on "
          f"{len(written['images']):,} images")
  return 0


def convert(run: Path, target: Path, part: str = "") -> dict:
  """Writes the model of `run`, or a part of it, and gives its manifest."""
  from align_jax.data.images import image_hashes
  from align_jax.data.pipeline import open_source
  from align_jax.hub.export_clip import export_clip
  from align_jax.train.manifest import write_json
  from align_jax.train.restore import restore

  found = restore(run)
  kind = found.config.model.kind
  if (kind == "vlm") != bool(part):
    raise InputError(
        f"{run} trained a {kind!r}; say --part connector or --part decoder"
        if kind == "vlm" else
        f"{run} trained a {kind!r}, which is written whole: leave --part out")
  if not found.finished:
    raise InputError(f"{run} is not finished (step {found.step}); go on with "
                     "`align-jax train`")
  if part:
    from align_jax.hub import export_vlm
    export = {"connector": export_vlm.export_connector,
              "decoder": export_vlm.export_decoder}[part]
    export(found.params, found.parts, target)
    written = _how(run)
    write_json(target / "manifest.json", written)
    return written
  model = found.parts.model
  export_clip(found.params, model.config, found.parts.tokenizer, target)

  used = {name for stage in found.config.stages
          for name in (stage.data or found.config.data.sources)}
  images: dict[str, str] = {}
  for name in sorted(used):
    source = open_source(name, found.config.data.sources[name])
    source = getattr(source, "of", source)  # views are of another's images
    images |= image_hashes(source[i] for i in range(len(source)))
  written = _how(run) | {"images": images}
  target.mkdir(parents=True, exist_ok=True)
  write_json(target / "manifest.json", written)
  return written


def _how(run: Path) -> dict:
  """How a run was made, for whoever reads what it gave."""
  from align_jax.train.manifest import read_json

  how = read_json(run / "manifest.json")
  # Where on some machine the run lay is no part of how it was made.
  words = ["align-jax", *how["command"][1:]]
  if "--workdir" in words[:-1]:
    words[words.index("--workdir") + 1] = f"runs/{how['name']}"
  keep = ("name", "commit", "python", "versions", "device", "seed",
          "parameters", "stages", "steps", "seconds")
  return {"command": shlex.join(words),
          **{key: how[key] for key in keep if key in how}}
