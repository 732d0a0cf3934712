"""`align-jax inspect`: what the visual tokens of a run mean."""

import argparse
import dataclasses
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
  align-jax inspect run runs/quickstart --image photo.png

Or finds the K words that carry ALIGN's distribution on training images, and
writes a file that `align-jax evaluate RUN --keep-words` takes; beside them
stand K random words, or the K most frequent in the training's text:

  align-jax inspect words runs/align --keep 3400 --images 100
  align-jax inspect words runs/align --keep 3400 --choose frequent

Or tells how much noise on the tower's features moves visual tokens, with and
without what all of them have in common:

  align-jax inspect noise runs/align --images 100

Or tells how a connector starts, before any training: how far its tokens are
apart, and over how many words ALIGN spreads them, for other gains as well:

  align-jax inspect start --config quickstart:connector=align --gains 1,3,6

Or looks at what `align-jax label` made: words laid over patches, the most
frequent ones, and, where the source knows what its patches show, whether the
foreground is scored above the background.

  align-jax inspect labels FOLDER"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("what", help="what to look into", choices=(
      "run", "words", "noise", "start", "labels"))
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
  parser.add_argument("--keep", type=int, default=3400, metavar="K",
                      help="for `words`: how many (default: %(default)s)")
  parser.add_argument("--choose", default="heaviest",
                      choices=("heaviest", "random", "frequent"),
                      help="for `words`: which (default: %(default)s)")
  parser.add_argument("--sigmas", default="0.5,1,2,3", metavar="S,S",
                      help="for `noise` (default: %(default)s)")
  parser.add_argument("--config", metavar="FILE[:arg]",
                      help="for `start`; single fields are set with "
                      "--config.FIELD=VALUE")
  parser.add_argument("--gains", default="1,2,3,4,6,10", metavar="G,G",
                      help="for `start`: other gains (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
  if args.what == "start":
    return start(args)
  if args.config or args.overrides:
    from align_jax.errors import InputError
    raise InputError(f"--config goes with `inspect start`; `inspect "
                     f"{args.what}` takes a run")
  if args.what == "labels":
    return labels(args)
  if args.what == "words":
    return kept_words(which_run.folder(args), args)
  if args.what == "noise":
    return noise(which_run.folder(args), args)
  source = which_run.source(args)
  with kept_clean():
    result = inspect_folder(source, args)
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
  print(f"pictures and words: {Path(result['report']).parent}")
  scored = result["evaluation"]
  line = f"report: {result['report']}"
  if scored:
    name = scored["train"].get("name", "the run")
    about = f"of {scored['n']} test questions right"
    if scored.get("scorer", "exact") != "exact":
      about = f"by {scored['headline']} on {scored['n']} test questions"
    unit = 100 if scored.get("share", True) else 1
    line = (f"{name}: {unit * scored['accuracy']:.1f}"
            f"{' %' if unit == 100 else ''} {about}"
            + ("" if scored["margin"] is None else
               f", {unit * scored['margin']:+.1f} points over what needs no "
               "looking") + f"; {line}")
  print(line)
  return 0


def start(args: argparse.Namespace) -> int:
  """How a config's connector starts."""
  from align_jax.config import load_config
  from align_jax.errors import InputError
  from align_jax.inspect import start as starts
  from align_jax.validate import validate

  if not args.config:
    raise InputError("`inspect start` needs --config FILE")
  gains = numbers("gains", args.gains)
  with kept_clean():
    config = validate(load_config(args.config, args.overrides), args.config)
    images = args.image or starts.images_of(config, args.images)
    found = starts.measure(starts.untrained(config), images, gains)
  if args.json:
    which_run.print_json([dataclasses.asdict(s) for s in found])
  else:
    print(starts.table(found))
  return 0


def numbers(option: str, text: str) -> list[float]:
  """Of an option with several.

  Raises:
    InputError: something else.
  """
  from align_jax.errors import InputError
  try:
    return [float(x) for x in text.split(",") if x]
  except ValueError as error:
    raise InputError(f"--{option} {text}: numbers with commas between them "
                     "are needed") from error


def kept_words(workdir: Path, args: argparse.Namespace) -> int:
  """Words to keep, in a file."""
  from align_jax.api import load_run
  from align_jax.inspect import pruning
  from align_jax.inspect.start import images_of

  with kept_clean():
    loaded = load_run(workdir, unfinished=args.unfinished)
    images = args.image or images_of(loaded.config, args.images)
    found = pruning.find(loaded, images, args.keep, args.choose, args.seed)
  kind = "" if args.choose == "heaviest" else f"{args.choose}_"
  path = workdir / "inspect" / f"kept_{kind}{args.keep}.json"
  path.parent.mkdir(exist_ok=True)
  pruning.write_words(found, path)
  if args.json:
    which_run.print_json(dataclasses.asdict(found) | {"file": str(path)})
    return 0
  print(f"{len(found.words):,} of {found.vocabulary:,} words carry "
        f"{found.mass:.2%} on {len(images)} images, {found.least_mass:.2%} of "
        "the token that loses most")
  print("words that carry " + ", ".join(
      f"{float(s):g}: {n:,}" for s, n in found.needed.items())
      + f"; {found.covered:,} are the first of some token")
  print(f"entropy {found.entropy:.2f} nats a token, "
        f"{found.entropy_of_mean:.2f} of their mean")
  print(f"{found.negligible:,} words have less than 1e-6 each, "
        f"{found.negligible_mass:.2%} together; kept words: {path}")
  return 0


def noise(workdir: Path, args: argparse.Namespace) -> int:
  """`inspect noise`: cosines between clean and noisy visual tokens."""
  from align_jax.api import load_run
  from align_jax.inspect import noise as of_noise
  from align_jax.train.manifest import write_json

  sigmas = numbers("sigmas", args.sigmas)
  with kept_clean():
    loaded = load_run(workdir, unfinished=args.unfinished)
    images, _ = chosen(loaded, args, asked=False)
    found = of_noise.measure(loaded, images, sigmas, args.seed)
  folder = workdir / "inspect"
  folder.mkdir(exist_ok=True)
  write_json(folder / "noise.json", found)
  if args.json:
    which_run.print_json(found)
  else:
    print(of_noise.table(found))
  return 0


def labels(args: argparse.Namespace) -> int:
  """`inspect labels`: draws, counts, and checks the sign."""
  from align_jax.inspect.labels import inspect_labels

  folder = args.run or args.workdir
  with kept_clean():
    found = inspect_labels(folder, args.images, args.seed)
  if args.json:
    which_run.print_json(found)
    return 0
  print(f"{found['images']:,} images, {100 * found['unlabelled_share']:.1f} % "
        "of the patches without a label")
  print("first words: " + ", ".join(
      f"{word} {100 * share:.1f} %" for word, share in found["frequent"][:10]))
  if check := found.get("check"):
    verdict = ("the foreground is scored higher" if check["foreground"]
               > check["background"] else "THE BACKGROUND IS SCORED HIGHER: "
               "turn the sign, or take other features")
    print(f"mean score {check['foreground']:.3f} on things, "
          f"{check['background']:.3f} on ground: {verdict}")
    print(f"a true word on {100 * check['hit_rate']:.1f} % of the patches "
          f"with a thing (chance {100 * check['chance']:.1f} %)")
  print(f"pictures: {Path(folder) / 'inspect'}")
  return 0


def inspect_folder(source: str | Path,
                   args: argparse.Namespace) -> dict[str, Any]:
  """Looks, writes the files, and gives what was found."""
  from align_jax.api import load_run
  from align_jax.errors import InputError
  from align_jax.inspect import look, pictures, report
  from align_jax.train.manifest import write_json

  if args.images < 1 or args.words < 1:
    raise InputError("--images and --words are at least 1")
  loaded = load_run(source, unfinished=args.unfinished)
  workdir = loaded.workdir
  scored = evaluation(workdir, loaded.config.eval.task, loaded.step)
  images, asked = chosen(loaded, args, scored is not None)
  # A connector that reads the question sees the first of each image.
  seen = look.look(loaded, images, args.words, [
      questions[0]["question"] if questions else "" for questions in asked])
  folder = workdir / "inspect"
  folder.mkdir(parents=True, exist_ok=True)
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


def chosen(loaded: Any, args: argparse.Namespace, scored: bool = False,
           asked: bool = True) -> tuple[list[Any], list[list[dict[str, Any]]]]:
  """Images to look at, and for each what was asked and answered.

  Answers are those of the evaluation if the run was `scored` at this step;
  without `asked` there are none.
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
  if not asked:
    images = look.some_images(task.n_images, args.images, args.seed)
    return [task.image(i) for i in images], [[] for _ in images]
  lines = loaded.workdir / "eval" / f"{config.task}.jsonl"
  answers = look.questions(loaded, task, args.images, args.seed,
                         lines if scored else None)
  return [task.image(i) for i in answers], list(answers.values())


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
