"""`align-jax convert`: models to and from the layouts of others."""

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align_jax.cli.stdout import kept_clean
from align_jax.cli.which_run import print_json
from align_jax.errors import InputError

DESCRIPTION = """Models to the layouts of others, and what of theirs is read.

  align-jax convert export RUN FOLDER [--to hf-llava]
      RUN is a run of ours, or a Hugging Face folder or id that we read.
        hf-clip    a CLIP run, for transformers' CLIPModel
        hf-llava   a linear or MLP connector, for transformers' AutoProcessor
                   and LlavaForConditionalGeneration (keys of transformers 5)
        hf-remote  other connectors, with torch files of ours that
                   trust_remote_code=True loads
        orbax      every parameter, frozen ones merged in, in our names
        connector  the connector alone, which another config starts from with
                   model.connector.weights=FOLDER
        hf-decoder the language model with its tokenizer, LoRA adapters added
                   in, which transformers loads
  align-jax convert verify PATH
      opens every file, fits every tensor, and hashes all. Of a folder or id
      FOLDER/sha256.json is written, which runs take their hashes from; of a
      run, its weights are held against the hashes in its manifest
  align-jax convert supported [--readme README.md]
      the table of what is read and written
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds export, verify and supported."""
  verbs = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
  export = verbs.add_parser("export", help="write a model for others to read")
  export.add_argument("run", metavar="RUN",
                      help="a run, a Hugging Face folder or an id")
  export.add_argument("folder", metavar="FOLDER", help="where to write")
  export.add_argument("--to", default="", metavar="LAYOUT",
                      choices=tuple(LAYOUTS),
                      help=f"{', '.join(LAYOUTS)} (default: the first of them "
                      "that has a place for the model)")
  export.add_argument("--shard-gb", type=float, default=4.0, metavar="GB",
                      help="the largest file of weights, which is also the "
                      "most that is held in memory (default: %(default)s)")
  verify = verbs.add_parser("verify", help="check and hash files of weights")
  verify.add_argument("run", metavar="PATH",
                      help="a Hugging Face folder or id, or a run")
  supported = verbs.add_parser("supported", help="what is read and written")
  supported.add_argument("--readme", metavar="FILE",
                         help="put the table there, between its marks")
  for verb in (export, verify, supported):
    verb.add_argument("--json", action="store_true",
                      help="print one JSON object and nothing else")
    verb.add_argument("--debug", action="store_true",
                      default=argparse.SUPPRESS,
                      help="show the traceback of an error")


def run(args: argparse.Namespace) -> int:
  """Does it; 0 is success.

  Raises:
    InputError: no finished run, or one whose model has no such layout.
  """
  with kept_clean():
    done = {"export": _export, "verify": _verify,
            "supported": _supported}[args.what](args)
  if args.json:
    print_json(done)
  else:
    print(done["said"])
  return 0


def _export(args: argparse.Namespace) -> dict[str, Any]:
  return convert(args.run, Path(args.folder), args.to,
                 int(args.shard_gb * 2**30))


def _verify(args: argparse.Namespace) -> dict[str, Any]:
  from align_jax.hub.verify import verify
  return verify(args.run)


def _supported(args: argparse.Namespace) -> dict[str, Any]:
  from align_jax.hub.supported import rows, table, write_readme
  if args.readme:
    write_readme(Path(args.readme))
  return {"models": rows(), "said": table()}


def convert(source: str | Path, target: Path, layout: str = "",
            max_bytes: int = 4 << 30) -> dict[str, Any]:
  """Writes a model and gives its manifest, which lies beside it.

  Args:
    source: a run's folder, or what `load_vlm` takes.
    target: where to write.
    layout: one of LAYOUTS; "" chooses.
    max_bytes: of a file of weights.

  Raises:
    InputError: no model there, or none that the layout has a place for.
  """
  import jax

  from align_jax.hub.pretrained import is_checkpoint
  from align_jax.train.manifest import write_json
  from align_jax.train.restore import run_config

  if jax.process_count() > 1:
    raise InputError("an export is written by one process; start just one")
  if target.resolve() == Path(source).resolve():
    raise InputError(f"{target} is the model itself; name another folder")
  if is_checkpoint(source):
    kind = "vlm"
  else:
    kind = run_config(source).model.kind
  if kind == "clip":
    if layout not in ("", "hf-clip"):
      raise InputError(f"{source} is a 'clip' run; it is written as hf-clip")
    from align_jax.cli.convert_clip import convert_clip
    written = convert_clip(Path(source), target)
  else:
    written = _convert_vlm(source, target, layout, max_bytes)
  write_json(target / "manifest.json", {
      k: v for k, v in written.items() if k != "said"})
  return written


def _convert_vlm(source: str | Path, target: Path, layout: str,
                 max_bytes: int) -> dict[str, Any]:
  from align_jax.api import Run
  from align_jax.hub.pretrained import is_checkpoint
  from align_jax.train import merged as merging

  if is_checkpoint(source):
    from align_jax.hub.whole import checkpoint_run
    run = checkpoint_run(source)
    merged = merging.of_checkpoint(run.config, run.parts)
  else:
    merged = merging.of_run(source)
    run = Run(Path(source), merged.config, merged.parts, None, merged.step)
  if layout == "hf-clip":
    raise InputError(f"{source} is a whole vision-language model; hf-clip is "
                     "for CLIP runs")
  if not layout:
    from align_jax.hub.export_llava import refusal
    layout = "hf-remote" if refusal(merged) else "hf-llava"
  files = LAYOUTS[layout]()(run, merged, target, max_bytes)
  about = merged.about
  keep = ("commit", "versions", "device", "seed", "stages", "steps",
          "trained_parameters", "files", "revisions")
  size = sum(f.stat().st_size for f in files)
  return {
      "name": merged.config.name, "layout": layout,
      "command": command(about) if about else str(source),
      **{key: about[key] for key in keep if key in about},
      "weights": [f.name for f in files],
      "said": f"{target}: {layout}, {size / 1e6:,.1f} MB in "
              f"{len(files)} file(s)"}


def command(about: dict[str, Any]) -> str:
  """The command that began a run, without where on some machine it lay."""
  words = ["align-jax", *about["command"][1:]]
  if "--workdir" in words[:-1]:
    words[words.index("--workdir") + 1] = f"runs/{about['name']}"
  return shlex.join(words)


def _llava() -> Callable[..., list[Path]]:
  from align_jax.hub.export_llava import export_llava
  return export_llava


def _remote() -> Callable[..., list[Path]]:
  from align_jax.hub.export_remote import export_remote
  return export_remote


def _orbax() -> Callable[..., list[Path]]:
  from align_jax.train.merged import export_orbax
  return export_orbax


def _connector() -> Callable[..., list[Path]]:
  from align_jax.hub.export_parts import export_connector
  return export_connector


def _decoder() -> Callable[..., list[Path]]:
  from align_jax.hub.export_parts import export_decoder
  return export_decoder


LAYOUTS: dict[str, Callable[[], Callable[..., list[Path]]] | None] = {
    "hf-clip": None, "hf-llava": _llava, "hf-remote": _remote,
    "orbax": _orbax, "connector": _connector, "hf-decoder": _decoder}
