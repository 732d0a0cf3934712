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
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds RUN, FOLDER and --json."""
  add_run(parser)
  parser.add_argument("folder", metavar="FOLDER", help="where to write")


def run(args: argparse.Namespace) -> int:
  """Writes FOLDER; 0 is success.

  Raises:
    InputError: no finished run, or one whose model has no such layout.
  """
  with kept_clean():
    written = convert(folder(args), Path(args.folder))
  if args.json:
    print_json(written)
  else:
    print(f"{args.folder}: {written['parameters']:,} parameters, trained on "
          f"{len(written['images']):,} images")
  return 0


def convert(run: Path, target: Path) -> dict:
  """Writes the model of `run` and gives its manifest."""
  from align_jax.data.images import image_hashes
  from align_jax.data.pipeline import open_source
  from align_jax.hub.export_clip import export_clip
  from align_jax.train.manifest import read_json, write_json
  from align_jax.train.restore import restore

  found = restore(run)
  if found.config.model.kind != "clip":
    raise InputError(f"{run} trained a {found.config.model.kind!r}; models of "
                     "kind 'clip' alone can be converted so far")
  if not found.finished:
    raise InputError(f"{run} is not finished (step {found.step}); go on with "
                     "`align-jax train`")
  model = found.parts.model
  export_clip(found.params, model.config, found.parts.tokenizer, target)

  used = {name for stage in found.config.stages
          for name in (stage.data or found.config.data.sources)}
  images: dict[str, str] = {}
  for name in sorted(used):
    source = open_source(name, found.config.data.sources[name])
    source = getattr(source, "of", source)  # views are of another's images
    images |= image_hashes(source[i] for i in range(len(source)))
  how = read_json(run / "manifest.json")
  # Where on some machine the run lay is no part of how it was made.
  words = ["align-jax", *how["command"][1:]]
  if "--workdir" in words[:-1]:
    words[words.index("--workdir") + 1] = f"runs/{how['name']}"
  keep = ("name", "commit", "python", "versions", "device", "seed",
          "parameters", "stages", "steps", "seconds")
  written = {
      "command": shlex.join(words),
      **{key: how[key] for key in keep if key in how},
      "images": images,
  }
  target.mkdir(parents=True, exist_ok=True)
  write_json(target / "manifest.json", written)
  return written
