"""`align-jax evaluate`: a run's answers, beside what needs no looking."""

import argparse
import json
from pathlib import Path
from typing import Any

from align_jax.cli import which_run
from align_jax.cli.stdout import kept_clean

DESCRIPTION = """\
Asks a run every question of its task's test split, and scores the answers
beside three baselines: the most frequent answer, the best training answer to
each question, and the same model shown other images. Writes RUN/eval/TASK.json
and, for each question, a line of RUN/eval/TASK.jsonl.

  align-jax evaluate runs/quickstart --limit 500
  align-jax evaluate runs/quickstart --noise 0.5 --noise 1 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  which_run.add_run(parser)
  parser.add_argument("--limit", type=int, metavar="N",
                      help="a fixed seeded sample of N questions; 0 asks all "
                      "(default: what the run's config says)")
  parser.add_argument("--noise", type=float, action="append", default=[],
                      metavar="SIGMA", help="also with Gaussian noise on the "
                      "tower's features, in units of their own standard "
                      "deviation; may be given several times")
  parser.add_argument("--scoring", default="generate",
                      choices=("generate", "likelihood", "both"),
                      help="greedy generation, likelihood over the closed set "
                      "of answers, or both (default: %(default)s)")
  parser.add_argument("--task", default="", metavar="NAME",
                      help="a registered task (default: the config's)")
  parser.add_argument("--seed", type=int, default=0,
                      help="of sample, exchange and noise (default: 0)")
  parser.add_argument("--no-blind", action="store_true",
                      help="leave out the pass with exchanged images")
  parser.add_argument("--keep-words", default="", metavar="FILE",
                      help="let ALIGN mix only the words of a file that "
                      "`align-jax inspect words` wrote; the result is "
                      "written to TASK.kept_K.json")
  parser.add_argument("--no-probe", action="store_true",
                      help="leave out the linear probe of the tower")


def run(args: argparse.Namespace) -> int:
  workdir = which_run.folder(args)
  with kept_clean():
    result = evaluate_folder(workdir, args)
  if args.json:
    which_run.print_json(result)
  else:
    print(table(result))
    print(f"\nevery answer: {result['samples']}")
  return 0


def evaluate_folder(workdir: Path, args: argparse.Namespace) -> dict[str, Any]:
  """Evaluates, writes the run's files, and gives the result."""
  from align_jax.api import load_run
  from align_jax.errors import InputError
  from align_jax.evals.evaluation import Options, evaluate
  from align_jax.evals.tasks import TASKS
  from align_jax.train.manifest import write_json
  from align_jax.train.restore import run_config

  config = run_config(workdir).eval
  name = args.task or config.task
  if not name:
    raise InputError(f"the config of {workdir} names no task; give --task, "
                     f"one of {', '.join(TASKS.names())}")
  own = config.options if name == config.task else {}
  task = TASKS.get(name)(**own)
  options = Options(
      limit=config.limit if args.limit is None else args.limit,
      noise=tuple(args.noise), scoring=args.scoring, rows=config.batch,
      max_new_tokens=config.max_new_tokens, seed=args.seed,
      blind=not args.no_blind, probe=not args.no_probe)
  loaded = load_run(workdir, unfinished=args.unfinished)
  stem, about_words = name, {}
  if args.keep_words:
    from align_jax.inspect.pruning import read_words
    words = read_words(args.keep_words)
    loaded = loaded.keeping(words)
    # Beside the run's own evaluation, not in its place.
    stem = f"{name}.kept_{len(words)}"
    about_words = {"keep_words": args.keep_words, "kept": len(words)}
  with _Bars() as bars:
    result, samples = evaluate(loaded, task, options, bars)
  folder = workdir / "eval"
  folder.mkdir(exist_ok=True)
  lines = folder / f"{stem}.jsonl"
  lines.write_text("".join(json.dumps(row) + "\n" for row in samples),
                   encoding="utf-8")
  result |= about(workdir) | {"samples": str(lines)} | about_words
  write_json(folder / f"{stem}.json", result)
  return result


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
  """The result for people."""
  pct = lambda x: "     –" if x is None else f"{100 * x:5.1f} %"
  low, high = result["ci95"]
  sure = result["margin_ci95"]
  lines = [
      f"{result['task']}: {result['n']} questions on {result['images']} "
      f"images, after {result['step']} steps",
      f"protocol: {result['protocol']}", "",
      f"  accuracy            {pct(result['accuracy'])}   95 %: "
      f"{100 * low:.1f} to {100 * high:.1f}, redrawing images",
  ]
  if "likelihood_accuracy" in result:
    lines.append(f"  by likelihood       {pct(result['likelihood_accuracy'])}")
  lines += [
      f"  majority answer     {pct(result['majority_accuracy'])}",
      f"  question prior      {pct(result['question_prior_accuracy'])}   best "
      "training answer to each question",
      f"  exchanged images    {pct(result['blind_accuracy'])}   the same "
      "model, shown something else",
      f"  margin              {100 * result['margin']:+5.1f} points over the "
      f"better of the last two; 95 %: {100 * sure[0]:+.1f} to "
      f"{100 * sure[1]:+.1f}", ""]
  for kind, row in result["by_type"].items():
    lines.append(
        f"  {kind:<18}  {pct(row['accuracy'])}   {row['n']} questions; prior "
        f"{pct(row['question_prior_accuracy']).strip()}, exchanged "
        f"{pct(row['blind_accuracy']).strip()}")
  for sigma, value in result["noise"].items():
    lines.append(f"  with noise {sigma:<7}  {pct(value)}")
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
