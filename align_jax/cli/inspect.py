"""`align-jax inspect`: what the visual tokens of a run mean."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from align_jax.cli import which_run
from align_jax.cli.stdout import kept_clean

DESCRIPTION = """\
Looks into a run: the nearest words of each visual token, for ALIGN its
distribution over words, and norms of visual beside text embeddings. Writes
pictures and one self-contained page, RUN/inspect/report.html, which also has
the results of `align-jax evaluate` where there are any of the same step.

  align-jax inspect run runs/quickstart
  align-jax inspect run runs/quickstart --image photo.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("what", choices=("run",), help="what to look into")
  which_run.add_run(parser)
  parser.add_argument("--images", type=int, default=6, metavar="N",
                      help="test images to show (default: %(default)s)")
  parser.add_argument("--image", action="append", default=[], metavar="FILE",
                      help="an image of your own instead; may be given "
                      "several times")
  parser.add_argument("--words", type=int, default=5, metavar="K",
                      help="words of a token (default: %(default)s)")
  parser.add_argument("--seed", type=int, default=0,
                      help="of the choice of images (default: 0)")


def run(args: argparse.Namespace) -> int:
  workdir = which_run.folder(args)
  with kept_clean():
    result = inspect_folder(workdir, args)
  if args.json:
    which_run.print_json(result)
    return 0
  geometry, spread = result["geometry"], result["distribution"]
  print(f"{result['tokens_per_image']} visual tokens an image, "
        f"{geometry['norm_ratio']:.3g} times as long as words; cosine "
        f"between two of them {geometry['visual']['cosine']:.2f}")
  if spread:
    print(f"each is a mean of words: entropy {spread['entropy']:.2f} of "
          f"{spread['uniform']:.2f} nats, 90 % on {spread['effective_words']} "
          f"words (median)")
  print(f"pictures and words: {workdir / 'inspect'}")
  scored = result["evaluation"]
  line = f"report: {result['report']}"
  if scored:
    name = scored["train"].get("name", "the run")
    line = (f"{name}: {100 * scored['accuracy']:.1f} % of {scored['n']} test "
            "questions right, "
            f"{100 * scored['margin']:+.1f} points over what needs no "
            f"looking; {line}")
  print(line)
  return 0


def inspect_folder(workdir: Path, args: argparse.Namespace) -> dict[str, Any]:
  """Looks, writes the files, and gives what was found."""
  from align_jax.api import load_run
  from align_jax.errors import InputError
  from align_jax.inspect import look, pictures, report
  from align_jax.train.manifest import write_json

  if args.images < 1 or args.words < 1:
    raise InputError("--images and --words are at least 1")
  loaded = load_run(workdir, unfinished=args.unfinished)
  scored = evaluation(workdir, loaded.config.eval.task, loaded.step)
  images, asked = chosen(loaded, args, scored is not None)
  seen = look.look(loaded, images, args.words)
  folder = workdir / "inspect"
  folder.mkdir(exist_ok=True)
  for old in folder.glob("image_*.png"):
    old.unlink()
  drawn, files = [], []
  for at, questions in enumerate(asked):
    png = look.draw(loaded, seen, at, [
        (q["question"], q["prediction"], q["right"]) for q in questions])
    if png is not None:
      drawn.append(png)
      files.append(folder / f"image_{at:02}.png")
      files[-1].write_bytes(png)
  compared, norms = look.compare(loaded, seen)
  (folder / "norms.png").write_bytes(norms)
  spread = look.distribution(loaded, seen)
  result = {
      "report": str(folder / "report.html"),
      "pictures": [str(f) for f in files], "words": str(folder / "words.json"),
      "tokens_per_image": seen.tokens.shape[1], "geometry": compared,
      "distribution": spread, "step": loaded.step,
      "evaluation": scored}
  write_json(folder / "words.json", result | {
      "images": [look.tell(loaded, seen, at) for at in range(len(images))]})
  page = report.Report(
      title=loaded.config.name,
      subtitle=subtitle(loaded),
      evaluation=result["evaluation"],
      samples=[{"image": pictures.thumbnail(seen.pixels[at]), "questions": q}
               for at, q in enumerate(asked) if q],
      pictures=drawn, words_note=note(spread), distribution=spread,
      geometry=compared, norms=norms, losses=look.losses(workdir),
      facts=facts(workdir, loaded))
  (folder / "report.html").write_text(report.html(page), encoding="utf-8")
  return result


def chosen(loaded: Any, args: argparse.Namespace, scored: bool = False
           ) -> tuple[list[Any], list[list[dict[str, Any]]]]:
  """Images to look at, and for each what was asked and answered.

  Answers are those of the evaluation if the run was `scored` at this step.
  """
  from align_jax.errors import InputError
  from align_jax.evals.tasks import TASKS
  from align_jax.inspect import look

  if args.image:
    return args.image, [[] for _ in args.image]
  config = loaded.config.eval
  if not config.task:
    raise InputError("the run's config names no task to take images from; "
                     "give --image FILE")
  task = TASKS.get(config.task)(**config.options)
  lines = loaded.workdir / "eval" / f"{config.task}.jsonl"
  asked = look.questions(loaded, task, args.images, args.seed,
                         lines if scored else None)
  return [task.image(i) for i in asked], list(asked.values())


def evaluation(workdir: Path, task: str, step: int) -> dict[str, Any] | None:
  """The run's evaluation at this step; one of another step is left out."""
  path = workdir / "eval" / f"{task}.json"
  if not task or not path.is_file():
    return None
  found = json.loads(path.read_text(encoding="utf-8"))
  if found.get("step") == step:
    return found
  print(f"{path} and the answers beside it are of step {found.get('step')}, "
        f"the run is at step {step}: left out. `align-jax evaluate {workdir}` "
        "makes them anew", file=sys.stderr)
  return None


def note(spread: dict[str, Any] | None) -> str:
  """How to read the pictures."""
  if spread:
    return ("This connector mixes words: over each patch stand the likeliest "
            "words of its visual token.")
  return ("Over each patch stand the words of the language model whose "
          "embeddings point most nearly the same way as its visual token. A "
          "connector need not write in words: what it writes only has to be "
          "readable by the decoder, so the nearest word may mean nothing.")


def subtitle(loaded: Any) -> str:
  model = loaded.config.model
  name = lambda part: (part.weights.rsplit("/", 1)[-1] or part.kind)
  return (f"{name(model.tower)} → {model.connector.kind} → "
          f"{name(model.decoder)}, {loaded.parts.tokens_per_image} visual "
          f"tokens an image, {loaded.step} steps")


def facts(workdir: Path, loaded: Any) -> list[tuple[str, Any]]:
  """What the page says of the run's making."""
  path = workdir / "manifest.json"
  known = (json.loads(path.read_text(encoding="utf-8"))
           if path.is_file() else {})
  model = loaded.config.model
  count = lambda key: f"{known[key]:,}" if key in known else ""
  rows = [
      ("tower", model.tower.weights or model.tower.kind),
      ("connector", model.connector.kind),
      ("decoder", model.decoder.weights or model.decoder.kind),
      ("parameters", count("parameters")),
      ("trained", count("trained_parameters")),
      ("steps", loaded.step),
      ("training time", f"{known['seconds']:,.0f} s on {known['device']}"
       if "seconds" in known and "device" in known else ""),
      ("seed", loaded.config.seed), ("commit", known.get("commit", "")),
      ("versions", ", ".join(f"{k} {v}" for k, v in
                             known.get("versions", {}).items())),
  ]
  return [(name, value) for name, value in rows if value != ""]
