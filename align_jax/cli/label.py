"""`align-jax label`: words for the patches of a data set's images."""

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from align_jax.cli.stdout import kept_clean
from align_jax.cli.which_run import print_json
from align_jax.errors import InputError

if TYPE_CHECKING:
  from align_jax.labels.job import Progress

DESCRIPTION = """Labels every patch of a data set's images with words.

  align-jax label --tower FOLDER_OR_ID --words words.txt \\
      --source '{"kind": "llava", "options": {"path": "blip.json"}}' \\
      --out labels/

A CLIP or SigLIP model says which words of the list each patch shows: SEA's
labels (2408.11813, section 3.1). Give the same command again to go on with a
job that was stopped. Train on them with a source of kind "labelled" and the
objective "sea".

--preset says how patches are read, for the tower's kind; or say it yourself:

  --how raw       last layer, post-norm, projection: needs --sign -1 (CLIP)
  --how maskclip  the last layer's values instead of its attention (CLIP)
  --how surgery   attention of values to values in the last layers (CLIP)
  --how map_head  each patch alone through the pooling head (SigLIP)
  --sign check    the sign that ranks things above the background, where the
                  source knows what its patches show

  align-jax label --of labels/ --as shuffled --out others/
makes controls of finished labels: `shuffled`, each image with the labels of
another, and `true`, what the source knows to be there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add("--tower", help="a whole CLIP or SigLIP model")
  add("--words", metavar="FILE", help="one word a line")
  add("--source", type=json.loads, metavar="JSON",
      help='a data source, {"kind": ..., "options": {...}}')
  add("--of", metavar="DIR", help="finished labels, to derive others from")
  add("--as", dest="kind", choices=("true", "shuffled"),
      help="what to make of them")
  add("--out", required=True, metavar="DIR", help="folder of the labels")
  add("--preset", default="paper", metavar="NAME",
      help="paper or recommended: --how, --layer, --sign and --n "
      "(default: %(default)s)")
  add("--how", default="", help="patch features (default: the preset's)")
  add("--layer", type=int,
      help="last layer to run, from the end (default: the preset's)")
  add("--sign", type=_sign, metavar="1|-1|check",
      help="of the cosine (default: the preset's; with another --how -1 for "
      "raw, else 1)")
  add("--n", type=int,
      help="words of a patch (default: the preset's)")
  add("--threshold", type=float, default=0.0,
      help="words not scored above it are dropped")
  add("--template", action="append", metavar="TEXT",
      help='such as "a photo of a {}"; several are averaged')
  add("--crop-from", default="", metavar="FOLDER_OR_ID",
      help="the tower that is to learn from the labels, if another one: "
      "pictures are resized and cropped as for it")
  add("--shard", type=int, default=1024, help="examples in a file")
  add("--batch", type=int, default=32, help="images at a time")
  add("--json", action="store_true", help="print the manifest as JSON")


def _sign(text: str) -> float | str:
  if text != "check" and float(text) not in (1.0, -1.0):
    raise ValueError(text)
  return text if text == "check" else float(text)


def run(args: argparse.Namespace) -> int:
  """Labels, or goes on; 0 is success.

  Raises:
    InputError: no such tower, words or images, or a folder of other labels.
  """
  with kept_clean():
    manifest = make(args)
  if args.json:
    print_json(manifest)
  elif "images" in manifest:
    print(f"{args.out}: {manifest['images']:,} images of "
          f"{manifest['patches']} patches, "
          f"{100 * manifest['unlabelled_share']:.1f} % of the patches without "
          "a label")
    if broken := manifest.get("unreadable"):
      print(f"{len(broken):,} images could not be read and have no labels:",
            *broken[:10], *["..."] * (len(broken) > 10), sep="\n  ")
  else:
    print(f"{args.out}: this process's part is done")
  return 0


def make(args: argparse.Namespace) -> dict:
  """Runs the job and gives its manifest."""
  import jax

  from align_jax.config import MeshConfig
  from align_jax.data import SOURCES
  from align_jax.hub.tower_face import load_tower
  from align_jax.labels import job
  from align_jax.labels.known import check_sign, derive
  from align_jax.labels.presets import TRAINING, check, label_preset
  from align_jax.parallel.distributed import initialise
  from align_jax.parallel.mesh import make_mesh
  from align_jax.validate import check_source

  if args.of:
    if not args.kind:
      raise InputError("--of needs --as, what to make of those labels")
    with _bar() as progress:
      return derive(args.kind, args.of, args.out, progress=progress)
  if missing := [f"--{n}" for n in ("tower", "words", "source")
                 if getattr(args, n) is None]:
    raise InputError(f"labels need {', '.join(missing)}, or --of other labels")
  initialise()
  check_source(args.source, "--source")
  # Each process labels its own shards, on all devices that it has.
  own = jax.local_devices()
  mesh = make_mesh(MeshConfig(data=-1), own) if len(own) > 1 else None
  tower = load_tower(args.tower, mesh=mesh)
  check(args.preset)
  preset = label_preset(args.preset, tower.spec.kind)
  how = args.how or preset["how"]
  sign = preset["sign"] if how == preset["how"] else (
      -1.0 if how == "raw" else 1.0)
  plan = job.Plan(
      tower=args.tower, words=args.words, source=args.source, how=how,
      layer=preset["layer"] if args.layer is None else args.layer, n=(
          TRAINING[args.preset]["n"] if args.n is None else args.n),
      threshold=args.threshold, shard=args.shard,
      sign=args.sign if isinstance(args.sign, float) else sign,
      crop_from=args.crop_from, templates=tuple(args.template or ("{}",)))
  source = SOURCES.get(args.source["kind"])(**args.source.get("options", {}))
  if args.sign == "check":
    sign, found = check_sign(plan, tower, source)
    plan = dataclasses.replace(plan, sign=sign)
    print(f"sign {sign:g}: mean cosine {found['things']:.3f} of things with "
          f"their words, {found['background']:.3f} of the background",
          file=sys.stderr)
  with _bar() as progress:
    return job.label(
        plan, source, tower, Path(args.out), batch=args.batch, mesh=mesh,
        process=jax.process_index(), processes=jax.process_count(),
        progress=progress)


@contextlib.contextmanager
def _bar() -> Iterator["Progress"]:
  """A bar of the examples, since their number is known, with images/s."""
  from tqdm import tqdm
  with tqdm(desc="examples", unit="example", dynamic_ncols=True) as bar:
    start, images = time.monotonic(), 0

    def progress(more: int, left: int) -> None:
      nonlocal images
      images += more
      bar.total = bar.total or bar.n + left
      bar.update(bar.total - left - bar.n)
      seconds = max(time.monotonic() - start, 1e-9)
      bar.set_postfix_str(f"{images / seconds:.1f} images/s")

    yield progress
