"""A run scored on a task, beside what can be scored without looking.

One pass over the questions as they are, one with each image exchanged for
one that shows something else, one for each strength of noise. The headline is
the margin over the better of the two blind scores.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from align_jax.api import Run
from align_jax.errors import InputError
from align_jax.evals.baselines import majority_answer, question_prior
from align_jax.evals.intervals import bootstrap, bootstrap_mean
from align_jax.evals.probe import pool, probe_accuracy
from align_jax.evals.scorers import PROTOCOLS, exact_match
from align_jax.evals.tasks import Item, Task, sample

SCORINGS = ("generate", "likelihood", "both")

# Told about every pass: its name, questions in all, questions just done.
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Options:
  """How to evaluate.

  Attributes:
    limit: questions, whole images in a fixed seeded order; 0 is all.
    noise: strengths of noise on the tower's features, each a pass more.
    scoring: "generate", "likelihood" over the closed set, or "both": then
      generation makes the headline and is alone in the blind and noisy
      passes.
    max_new_tokens: answers are cut there.
    rows: questions in a batch.
    seed: of the sample, of the exchange and of the noise.
    blind: whether to make the pass with exchanged images.
    probe: whether to fit the linear probe.
  """
  limit: int = 0
  noise: tuple[float, ...] = ()
  scoring: str = "generate"
  max_new_tokens: int = 8
  rows: int = 32
  seed: int = 0
  blind: bool = True
  probe: bool = True

  def __post_init__(self) -> None:
    faults = []
    if self.scoring not in SCORINGS:
      faults.append(f"scoring {self.scoring!r} is not one of "
                    f"{', '.join(SCORINGS)}")
    faults += [f"noise {s} is negative" for s in self.noise if s < 0]
    if self.limit < 0:
      faults.append(f"limit {self.limit} is negative; 0 takes all")
    if faults:
      raise InputError("; ".join(faults))


def evaluate(
    run: Run,
    task: Task,
    options: Options,
    progress: Progress = lambda name, total, done: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Scores a run.

  Returns:
    (result, samples): figures that JSON can hold, and a record a question.

  Raises:
    InputError: the task has no questions.
  """
  started = time.monotonic()
  items = sample(task.items, options.limit, options.seed)
  if not items:
    raise InputError(f"task {task.name} has no questions")
  ask = _Asker(run, task, items, options, progress)

  answers, likely = ask("answers")
  right = _right(answers, items)
  images = [item.image for item in items]
  questions, training = zip(*task.training)
  common = majority_answer(training)
  prior = question_prior(questions, training)
  prior_answers = [prior.get(item.question, common) for item in items]
  samples = [
      {"id": i.id, "image": i.image, "type": i.type, "question": i.question,
       "answer": i.answer, "prediction": a, "right": bool(r), "prior": p}
      for i, a, r, p in zip(items, answers, right, prior_answers)]
  columns = {"right": right, "prior": _right(prior_answers, items)}

  result: dict[str, Any] = {
      "task": task.name, "n": len(items), "images": len(set(images)),
      "accuracy": float(right.mean()),
      "ci95": list(bootstrap_mean(right, images, seed=options.seed)),
      "majority_accuracy": float(_right([common] * len(items), items).mean()),
      "question_prior_accuracy": float(columns["prior"].mean()),
      "blind_accuracy": None, "margin": None, "margin_ci95": None}
  if likely is not None:
    result["likelihood_accuracy"] = float(_right(likely, items).mean())
    _note(samples, "likelihood_prediction", likely)

  partners = task.exchanged(options.seed) if options.blind else None
  if partners is not None:
    blind, _ = ask("exchanged images", partners=partners)
    columns["blind"] = _right(blind, items)
    _note(samples, "blind_image", [partners[i.image] for i in items])
    _note(samples, "blind_prediction", blind)
    result["blind_accuracy"] = float(columns["blind"].mean())
  others = [k for k in ("prior", "blind") if k in columns]
  gap = lambda means: means["right"] - np.max(
      [means[k] for k in others], axis=0)
  result["margin"] = float(gap({k: v.mean() for k, v in columns.items()}))
  result["margin_ci95"] = list(
      bootstrap(columns, images, gap, seed=options.seed))

  result["by_type"] = {
      kind: _of_type(np.array([i.type == kind for i in items]), columns)
      for kind in sorted({item.type for item in items})}
  result["noise"] = {}
  for sigma in options.noise:
    noisy, _ = ask(f"noise {sigma:g}", noise=sigma)
    result["noise"][f"{sigma:g}"] = float(_right(noisy, items).mean())
    _note(samples, f"noise_{sigma:g}_prediction", noisy)
  result["probe"] = probe(run, task, progress) if options.probe else None
  headline = ("likelihood" if options.scoring == "likelihood" else "generate")
  result |= {
      "scoring": options.scoring, "protocol": PROTOCOLS[headline],
      "limit": options.limit, "seed": options.seed, "step": run.step,
      "seconds": round(time.monotonic() - started, 1)}
  return result, samples


class _Asker:
  """Asks every question once, under some condition."""

  def __init__(self, run: Run, task: Task, items: Sequence[Item],
               options: Options, progress: Progress):
    self.run, self.task, self.items = run, task, items
    self.options, self.progress = options, progress
    self.prompts = [run.prompt(task.example(item)) for item in items]
    # Training alone decides how an answer is written, so that a likelihood
    # is that of the very tokens training asks for.
    self.closed = [run.answer_tokens(a) for a in task.answers]

  def __call__(self, name: str, partners: Sequence[int] | None = None,
               noise: float = 0.0) -> tuple[list[str], list[str] | None]:
    """(headline answers, those by likelihood where both were asked for)."""
    shown = [item.image if partners is None else partners[item.image]
             for item in self.items]
    prompts = [dataclasses.replace(p, images=int(image))
               for p, image in zip(self.prompts, shown)]
    generator = self.run.generator(rows=self.options.rows, noise=noise,
                                   seed=self.options.seed)
    read = lambda image: self.run.read([self.task.image(image)])
    total = len(prompts)
    told = lambda done, what=name: self.progress(what, total, done)
    said = likely = None
    scoring = self.options.scoring
    if scoring == "both" and (partners is not None or noise):
      scoring = "generate"  # the headline's, to compare like with like
    if scoring != "likelihood":
      said = [self.run.text(ids) for ids in generator.generate(
          prompts, read, self.options.max_new_tokens, told)]
    if scoring != "generate":
      scores = generator.score(
          prompts, self.closed, read,
          lambda done: told(done, f"{name}, likelihood"))
      likely = [self.task.answers[i] for i in scores.argmax(-1)]
    return (likely, None) if said is None else (said, likely)


def probe(run: Run, task: Task,
          progress: Progress = lambda name, total, done: None,
          ) -> dict[str, float] | None:
  """What a linear probe reads from the tower's pooled features."""
  found = task.probe_images()
  if found is None:
    return None
  train, test, names = found
  total = len(train) + len(test)
  kept = run.config.model.tower.class_token

  def pooled(images: Sequence[Any]) -> np.ndarray:
    out = []
    for at in range(0, len(images), 64):
      part = [images[i] for i in range(at, min(at + 64, len(images)))]
      out.append(pool(run.features(part), kept))
      progress("probe", total, len(part))
    return np.concatenate(out)

  train_nc, test_nc = pooled(train), pooled(test)
  result = {}
  for name, (train_names, test_names) in names.items():
    known, asked = (np.array([bool(v) for v in values])
                    for values in (train_names, test_names))
    result[name] = probe_accuracy(
        train_nc[known], [v for v in train_names if v],
        test_nc[asked], [v for v in test_names if v])
  return result


def _right(answers: Sequence[str], items: Sequence[Item]) -> np.ndarray:
  return np.array([exact_match(a, i.answer)
                   for a, i in zip(answers, items)], np.float64)


def _of_type(which: np.ndarray,
             columns: dict[str, np.ndarray]) -> dict[str, Any]:
  mean = lambda name: (float(columns[name][which].mean())
                       if name in columns else None)
  return {"n": int(which.sum()), "accuracy": mean("right"),
          "question_prior_accuracy": mean("prior"),
          "blind_accuracy": mean("blind")}


def _note(samples: Sequence[dict[str, Any]], key: str,
          values: Sequence[Any]) -> None:
  for row, value in zip(samples, values):
    row[key] = value
