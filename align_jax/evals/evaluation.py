"""A run scored on a task, beside what can be scored without looking.

One pass over the questions as they are, one with each image exchanged for
another, one for each strength of noise. The headline is the margin over the
better of the blind scores that can be had: a benchmark without a training
split has no question prior, which is then None and never 0.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from align_jax.api import Run
from align_jax.data.images import listed
from align_jax.errors import InputError
from align_jax.evals.baselines import majority_answer, question_prior
from align_jax.evals.intervals import bootstrap, bootstrap_mean
from align_jax.evals.probe import pool, probe_accuracy
from align_jax.evals.prompts import bucket
from align_jax.evals.scorers import SCORERS, Scorer
from align_jax.evals.tasks import Item, Task, sample

# How answers are had: said, or picked from the closed set.
SCORINGS = {
    "generate": "greedy generation",
    "likelihood": (
        "closed set; the answer whose tokens and end of turn have the largest "
        "summed log-probability"),
    "both": "greedy generation",
}

# Of images that several passes look at.
KEPT_BYTES = 512 * 2**20

# Told about every pass: its name, questions in all, questions just done.
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Options:
  """How to evaluate.

  Attributes:
    limit: questions, whole images in a fixed seeded order; 0 is all.
    noise: strengths of noise on the tower's features, each a pass more; in
      units of the features' own standard deviation.
    noise_absolute: likewise, in the units of the features themselves.
    scoring: "generate", "likelihood" over the closed set, or "both": then
      generation makes the headline and is alone in the blind and noisy
      passes. "" is the task's own.
    max_new_tokens: answers are cut there; a task may ask for its own.
    scorer: name in SCORERS; "" is the task's own.
    rows: questions in a batch.
    seed: of the sample, of the exchange and of the noise.
    blind: whether to make the pass with exchanged images.
    probe: whether to fit the linear probe.
  """
  limit: int = 0
  noise: tuple[float, ...] = ()
  noise_absolute: tuple[float, ...] = ()
  scoring: str = ""
  max_new_tokens: int = 8
  scorer: str = ""
  rows: int = 32
  seed: int = 0
  blind: bool = True
  probe: bool = True

  def __post_init__(self) -> None:
    faults = []
    if self.scoring and self.scoring not in SCORINGS:
      faults.append(f"scoring {self.scoring!r} is not one of "
                    f"{', '.join(SCORINGS)}")
    faults += [f"noise {s} is negative"
               for s in (*self.noise, *self.noise_absolute) if s < 0]
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
    `accuracy` and its baselines are the scorer's headline; `scores` has all
    its figures. What cannot be known is None.

  Raises:
    InputError: the task has no questions, or no closed set for likelihoods.
  """
  started = time.monotonic()
  items = sample(task.items, options.limit, options.seed)
  if not items:
    raise InputError(f"task {task.name} has no questions")
  options = dataclasses.replace(
      options, scoring=options.scoring or task.scoring,
      max_new_tokens=task.max_new_tokens or options.max_new_tokens)
  if options.scoring != "generate" and not task.answers and not all(
      item.closed for item in items):
    raise InputError(f"task {task.name} has no closed set of answers, so "
                     f"scoring {options.scoring!r} cannot be had; 'generate' "
                     "can")
  name = options.scorer or task.scorer
  try:
    scorer = SCORERS.get(name)()
  except KeyError as error:
    raise InputError(error.args[0]) from error
  ask = _Asker(run, task, items, options, progress)

  answers, likely = ask("answers")
  images = [item.image for item in items]
  said = {"right": answers}
  common = None
  if task.training:
    questions, training = zip(*task.training)
    common = majority_answer(training)
    prior = question_prior(questions, training)
    said["prior"] = [prior.get(item.question, common) for item in items]
  right = np.asarray(scorer.scores(answers, items), np.float64)
  samples = [
      {"id": i.id, "image": i.image, "type": i.type, "question": i.question,
       "answer": i.answer, "prediction": a, "score": float(r),
       "right": bool(r == 1)}
      for i, a, r in zip(items, answers, right)]
  scores = scorer.total(answers, items)
  result: dict[str, Any] = {
      "task": task.name, "scorer": name, "n": len(items),
      "images": len(set(images)), "accuracy": scores[scorer.headline],
      "scores": scores, "headline": scorer.headline, "share": scorer.share,
      "ci95": None, "majority_accuracy": None,
      "question_prior_accuracy": None, "blind_accuracy": None,
      "margin": None, "margin_ci95": None}
  if common is not None:
    _note(samples, "prior", said["prior"])
    result["majority_accuracy"] = _headline(
        scorer, [common] * len(items), items)
    result["question_prior_accuracy"] = _headline(
        scorer, said["prior"], items)
  if likely is not None:
    result["likelihood_accuracy"] = _headline(scorer, likely, items)
    _note(samples, "likelihood_prediction", likely)

  partners = task.exchanged(options.seed) if options.blind else None
  if partners is not None:
    said["blind"], _ = ask("exchanged images", partners=partners)
    _note(samples, "blind_image", [partners[i.image] for i in items])
    _note(samples, "blind_prediction", said["blind"])
    result["blind_accuracy"] = _headline(scorer, said["blind"], items)
  others = [k for k in ("prior", "blind") if k in said]
  if others:
    result["margin"] = result["accuracy"] - max(
        _headline(scorer, said[k], items) for k in others)
  if scorer.sampled:
    columns = {"right": right} | {
        k: np.asarray(scorer.scores(said[k], items), np.float64)
        for k in others}
    result["ci95"] = list(bootstrap_mean(right, images, seed=options.seed))
    if others:
      result["margin_ci95"] = list(bootstrap(
          columns, images, lambda means: means["right"] - np.max(
              [means[k] for k in others], axis=0), seed=options.seed))

  result["by_type"] = {
      kind: _of_type(scorer, kind, said, items)
      for kind in sorted({item.type for item in items})}
  seen = result["accuracy"] - (result["blind_accuracy"] or 0.0)
  for kind, strengths in (("noise", options.noise),
                          ("noise_absolute", options.noise_absolute)):
    found = result[kind] = {}
    for sigma in strengths:
      noisy = answers
      if sigma:
        noisy, _ = ask(f"{kind.replace('_', ', ')} {sigma:g}", noise=sigma,
                       absolute=kind == "noise_absolute")
        _note(samples, f"{kind}_{sigma:g}_prediction", noisy)
      found[f"{sigma:g}"] = _headline(scorer, noisy, items)
    if partners is not None and seen > 0:
      # Of what looking gave; an answer that never looked keeps nothing.
      result[f"{kind}_kept"] = {
          sigma: (value - result["blind_accuracy"]) / seen
          for sigma, value in found.items()}
  result["probe"] = probe(run, task, progress) if options.probe else None
  if hasattr(task, "measures"):
    result["measures"] = task.measures(run)
  result |= {
      "scoring": options.scoring,
      "protocol": f"{_how(options.scoring, task)}; {scorer.protocol}",
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
    self.kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    self.room = KEPT_BYTES
    # Questions with as many possible answers are scored together; where sets
    # are of several sizes, in a few sizes that are compiled.
    self.closed = [item.closed or tuple(task.answers) for item in items]
    sizes = {len(answers) for answers in self.closed}
    self.sets: dict[int, list[int]] = {}
    for at, answers in enumerate(self.closed):
      size = bucket(len(answers)) if len(sizes) > 1 else len(answers)
      self.sets.setdefault(size, []).append(at)

  def _read(self, image: int) -> tuple[np.ndarray, np.ndarray]:
    """An image's slots; drawn or decoded once, while there is room."""
    if image not in self.kept:
      found = self.run.read(listed(self.task.image(image)))
      self.room -= found[0].nbytes
      if self.room < 0:
        return found
      self.kept[image] = found
    return self.kept[image]

  def __call__(self, name: str, partners: Sequence[int] | None = None,
               noise: float = 0.0, absolute: bool = False,
               ) -> tuple[list[str], list[str] | None]:
    """(headline answers, those by likelihood where both were asked for)."""
    shown = [item.image if partners is None else partners[item.image]
             for item in self.items]
    prompts = [dataclasses.replace(p, images=int(image))
               for p, image in zip(self.prompts, shown)]
    generator = self.run.generator(rows=self.options.rows, noise=noise,
                                   absolute=absolute, seed=self.options.seed)
    read = self._read
    total = len(prompts)
    told = lambda done, what=name: self.progress(what, total, done)
    said = likely = None
    scoring = self.options.scoring
    if scoring == "both" and (partners is not None or noise):
      scoring = "generate"  # the headline's, to compare like with like
    if scoring != "likelihood":
      said = [self.run.text(ids) for ids in generator.generate(
          prompts, read, self.options.max_new_tokens, told,
          beam=self.task.beam)]
    if scoring != "generate":
      likely = [""] * total
      # Training alone decides how an answer is written, so that a likelihood
      # is that of the very tokens training asks for.
      tokens = functools.cache(self.run.answer_tokens)
      for size, members in self.sets.items():
        answers = [self.closed[i] for i in members]
        scores = generator.score(
            [prompts[i] for i in members],
            [[tokens(a) for a in (*known, *known[:1] * (size - len(known)))]
             for known in answers], read,
            lambda done: told(done, f"{name}, likelihood"))
        for i, known, row in zip(members, answers, scores):
          among = row[:len(self.items[i].options) or len(known)]
          likely[i] = known[int(among.argmax())]
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


def _how(scoring: str, task: Task) -> str:
  if task.beam is not None and scoring != "likelihood":
    return str(task.beam)
  return SCORINGS[scoring]


def _headline(scorer: Scorer, answers: Sequence[str],
              items: Sequence[Item]) -> float:
  return float(scorer.total(answers, items)[scorer.headline])


def _of_type(scorer: Scorer, kind: str, said: dict[str, Sequence[str]],
             items: Sequence[Item]) -> dict[str, Any]:
  """The headline on the questions of one kind alone."""
  which = [n for n, item in enumerate(items) if item.type == kind]
  asked = [items[n] for n in which]
  mean = lambda name: (
      _headline(scorer, [said[name][n] for n in which], asked)
      if name in said else None)
  return {"n": len(which), "accuracy": mean("right"),
          "question_prior_accuracy": mean("prior"),
          "blind_accuracy": mean("blind")}


def _note(samples: Sequence[dict[str, Any]], key: str,
          values: Sequence[Any]) -> None:
  for row, value in zip(samples, values):
    row[key] = value
