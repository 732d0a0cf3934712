"""`align-jax evaluate`: a run's answers, beside what needs no looking."""

import argparse
import inspect
import json
from pathlib import Path
from typing import Any

from align_jax.cli import which_run
from align_jax.cli.stdout import kept_clean

DESCRIPTION = """\
Asks a run every question of its task's test split, and scores the answers
beside three baselines: the most frequent answer, the best training answer to
each question, and the same model shown other images. A benchmark without a
training split has no such answers: a dash stands in their place. Writes
RUN/eval/TASK.json and, for each question, a line of RUN/eval/TASK.jsonl.

  align-jax evaluate runs/quickstart --limit 500
  align-jax evaluate runs/quickstart --noise 0.5 --noise 1 --json
  align-jax evaluate RUN --task pope --option folder=/data/pope

--perplexity asks no questions: it says how well the language model predicts a
plain text, now and before the run trained it, in RUN/eval/perplexity.json.

  align-jax evaluate RUN --perplexity held_out.txt

--nine asks nothing either: it is AlignVLM's average over nine document sets,
of what is in RUN/eval already.

  align-jax evaluate RUN --nine"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  which_run.add_run(parser)
  parser.add_argument("--limit", type=int, metavar="N",
                      help="a fixed seeded sample of N questions; 0 asks all "
                      "(default: what the run's config says)")
  parser.add_argument("--noise", type=float, action="append", default=[],
                      metavar="SIGMA", help="also with Gaussian noise on the "
                      "tower's features, in units of their own standard "
                      "deviation; may be given several times")
  parser.add_argument("--noise-absolute", type=float, action="append",
                      default=[], metavar="SIGMA", help="likewise, in the "
                      "units of the features themselves")
  parser.add_argument("--scoring", default="",
                      choices=("generate", "likelihood", "both"),
                      help="greedy generation, likelihood over the closed set "
                      "of answers, or both (default: the task's own)")
  parser.add_argument("--scorer", default="", metavar="NAME",
                      help="a registered scorer (default: the task's own)")
  parser.add_argument("--task", default="", metavar="NAME",
                      help="a registered task (default: the config's)")
  parser.add_argument("--option", action="append", default=[],
                      metavar="NAME=VALUE", help="of the task, such as its "
                      "folder; may be given several times")
  parser.add_argument("--seed", type=int, default=0,
                      help="of sample, exchange and noise (default: 0)")
  parser.add_argument("--no-blind", action="store_true",
                      help="leave out the pass with exchanged images")
  parser.add_argument("--keep-words", default="", metavar="FILE",
                      help="let ALIGN mix only the words of a file that "
                      "`align-jax inspect words` wrote; the result is "
                      "written to TASK.FILE.json")
  parser.add_argument("--perplexity", default="", metavar="FILE",
                      help="of the language model on this text, instead of a "
                      "task")
  parser.add_argument("--nine", action="store_true",
                      help="the mean over AlignVLM's nine document sets, each "
                      "evaluated before, instead of a task")
  parser.add_argument("--no-probe", action="store_true",
                      help="leave out the linear probe of the tower")


def run(args: argparse.Namespace) -> int:
  source = which_run.source(args)
  if args.nine:
    return _nine(source, args.json)
  with kept_clean():
    result = (perplexity_of(source, args) if args.perplexity
              else evaluate_folder(source, args))
  if args.perplexity and not args.json:
    print(perplexity_lines(result))
  elif args.json:
    which_run.print_json(result)
  else:
    print(table(result))
    print(f"\nevery answer: {result['samples']}")
  return 0


def _nine(source: str | Path, as_json: bool) -> int:
  from align_jax.evals.scorers import nine
  found = nine.of_run(Path(source))
  if as_json:
    which_run.print_json(found)
  else:
    print(nine.lines(found))
  return 0


def evaluate_folder(source: str | Path,
                    args: argparse.Namespace) -> dict[str, Any]:
  """Evaluates, writes the run's files, and gives the result."""
  from align_jax.api import load_run
  from align_jax.config import EvalConfig
  from align_jax.errors import InputError
  from align_jax.evals.evaluation import Options, evaluate
  from align_jax.evals.tasks import TASKS, open_task
  from align_jax.hub.pretrained import is_checkpoint
  from align_jax.train.manifest import write_json
  from align_jax.train.restore import run_config

  others = is_checkpoint(source)
  config = EvalConfig() if others else run_config(source).eval
  name = args.task or config.task
  if not name:
    raise InputError(f"{source} names no task; give --task, "
                     f"one of {', '.join(TASKS.names())}")
  own = config.options if name == config.task else {}
  task = open_task(name, own | _options(name, args.option))
  options = Options(
      limit=config.limit if args.limit is None else args.limit,
      noise=tuple(args.noise), noise_absolute=tuple(args.noise_absolute),
      scoring=args.scoring, rows=config.batch,
      scorer=args.scorer, max_new_tokens=config.max_new_tokens, seed=args.seed,
      blind=not args.no_blind, probe=not args.no_probe)
  loaded = load_run(source, unfinished=args.unfinished)
  workdir = loaded.workdir
  stem, about_words = name, {}
  if args.keep_words:
    from align_jax.inspect.pruning import read_words
    words = read_words(args.keep_words)
    loaded = loaded.keeping(words)
    # Beside the run's own evaluation, not in its place.
    stem = f"{name}.{Path(args.keep_words).stem}"
    about_words = {"keep_words": args.keep_words, "kept": len(words)}
  with _Bars() as bars:
    result, samples = evaluate(loaded, task, options, bars)
  folder = workdir / "eval"
  folder.mkdir(parents=True, exist_ok=True)
  lines = folder / f"{stem}.jsonl"
  lines.write_text("".join(json.dumps(row) + "\n" for row in samples),
                   encoding="utf-8")
  result |= about(workdir) | about_words | {
      "run": str(source), "samples": str(lines)}
  write_json(folder / f"{stem}.json", result)
  return result


def perplexity_of(source: str | Path,
                  args: argparse.Namespace) -> dict[str, Any]:
  """Measures and writes RUN/eval/perplexity.json."""
  from align_jax.api import load_run
  from align_jax.evals.plain_text import preserved
  from align_jax.train.manifest import write_json

  loaded = load_run(source, unfinished=args.unfinished)
  result = preserved(loaded, args.perplexity) | about(loaded.workdir)
  folder = loaded.workdir / "eval"
  folder.mkdir(parents=True, exist_ok=True)
  write_json(folder / "perplexity.json", result)
  return result


def perplexity_lines(result: dict[str, Any]) -> str:
  """The result for people."""
  one = lambda found: (f"{found['perplexity']:.3f} on {found['tokens']:,} "
                       f"tokens, {found['nats_per_byte']:.4f} nats a byte")
  lines = [f"{result['file']}: perplexity after {result['step']} steps "
           f"{one(result)}"]
  lines.append(f"before: {one(result['before'])}" if result["before"] else
               "before: the language model started from no weights")
  return "\n".join(lines)


def _options(task: str, given: list[str]) -> dict[str, Any]:
  """Options of a task, read as its own parameters say what they are."""
  from align_jax.config import parse_value
  from align_jax.errors import InputError
  from align_jax.evals.tasks import TASKS
  faults = [text for text in given if "=" not in text]
  if faults:
    raise InputError(f"--option {faults[0]!r} is not NAME=VALUE")
  kinds = {name: p.annotation for name, p in inspect.signature(
      TASKS.get(task)).parameters.items()} if task in TASKS.names() else {}
  return {name: parse_value(value, kinds.get(name, str))
          for name, value in (text.split("=", 1) for text in given)}


def about(workdir: Path) -> dict[str, Any]:
  """Where a result is from: the run's manifest, and this evaluation's own."""
  import jax

  from align_jax.train.manifest import commit, versions
  manifest = workdir / "manifest.json"
  known = (json.loads(manifest.read_text(encoding="utf-8"))
           if manifest.is_file() else {})
  keys = ("name", "parameters", "trained_parameters", "steps", "seconds",
          "device", "commit", "seed")
  return {"run": str(workdir), "commit": commit(), "versions": versions(),
          "device": jax.devices()[0].device_kind,
          "train": {k: known[k] for k in keys if k in known}}


def table(result: dict[str, Any]) -> str:
  """The result for people; a dash stands for what cannot be known."""
  share = result.get("share", True)
  unit = 100 if share else 1
  pct = lambda x: "     –" if x is None else (
      f"{100 * x:5.1f} %" if share else f"{x:7.4f}")
  between = lambda pair, sign="": (
      "" if pair is None else
      f"95 %: {unit * pair[0]:{sign}.1f} to {unit * pair[1]:{sign}.1f}")
  sure = between(result["ci95"])
  lines = [
      f"{result['task']}: {result['n']} questions on {result['images']} "
      f"images, after {result['step']} steps",
      f"protocol: {result['protocol']}", "",
      f"  {result.get('headline', 'accuracy'):<18}  {pct(result['accuracy'])}"
      + (f"   {sure}, redrawing images" if sure else "")]
  lines += [  # counts are whole numbers, everything else is of one unit
      f"  {name:<18}  {f'{value:7}' if isinstance(value, int) else pct(value)}"
      for name, value in result.get("scores", {}).items()
      if name != result["headline"]]
  if "likelihood_accuracy" in result:
    lines.append(f"  by likelihood       {pct(result['likelihood_accuracy'])}")
  lines += [
      f"  majority answer     {pct(result['majority_accuracy'])}",
      f"  question prior      {pct(result['question_prior_accuracy'])}   best "
      "training answer to each question",
      f"  exchanged images    {pct(result['blind_accuracy'])}   the same "
      "model, shown something else"]
  if result["margin"] is not None:
    sure = between(result["margin_ci95"], "+")
    lines.append(
        f"  margin              {unit * result['margin']:+5.1f} points over "
        "the better of the last two" + (f"; {sure}" if sure else ""))
  lines.append("")
  for kind, row in result["by_type"].items():
    lines.append(
        f"  {kind:<18}  {pct(row['accuracy'])}   {row['n']} questions; prior "
        f"{pct(row['question_prior_accuracy']).strip()}, exchanged "
        f"{pct(row['blind_accuracy']).strip()}")
  for kind, of in (("noise", ""), ("noise_absolute", ", absolute")):
    kept = result.get(f"{kind}_kept", {})
    for sigma, value in result.get(kind, {}).items():
      share = (f"   {100 * kept[sigma]:.0f} % of what looking gave is kept"
               if sigma in kept else "")
      lines.append(f"  noise {sigma + of:<13} {pct(value)}{share}")
  if result["probe"]:
    read = ", ".join(f"{k} {pct(v).strip()}"
                     for k, v in result["probe"].items())
    lines += ["", f"  ceiling: a linear probe of the tower reads {read}"]
  return "\n".join(lines)


class _Bars:
  """A progress bar for each pass, on standard error."""

  def __init__(self) -> None:
    self.name, self.bar = "", None

  def __enter__(self) -> "_Bars":
    return self

  def __call__(self, name: str, total: int, done: int) -> None:
    from tqdm import tqdm
    if name != self.name:
      self.__exit__()
      self.name = name
      self.bar = tqdm(total=total, desc=name, unit="", leave=False)
    self.bar.update(done)

  def __exit__(self, *error: object) -> None:
    if self.bar is not None:
      self.bar.close()
