"""A run: its stages one after the other, from wherever it was left."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align_jax.config import Config, StageConfig, plain
from align_jax.data.pipeline import merge_states
from align_jax.errors import InputError
from align_jax.parallel import rules
from align_jax.parallel.distributed import is_main
from align_jax.parallel.layout import ROWS
from align_jax.train import audit, manifest
from align_jax.train.checkpoint import Checkpoints, gather_json
from align_jax.train.compilations import Compilations
from align_jax.train.job import Batches, Job, assemble
from align_jax.train.metrics import MetricsLog
from align_jax.train.optimizer import make_optimizer, schedule
from align_jax.train.progress import Progress, clock
from align_jax.train.select import (
  Flat,
  base,
  flatten,
  join,
  split,
  trainables,
)
from align_jax.train.state import TrainState, abstract_state, new_state
from align_jax.train.step import make_step
from align_jax.train.stop import Stop
from align_jax.train.watch import Watch
from align_jax.validate import check_rows

Result = dict[str, Any]


def train(config: Config, workdir: str | Path, job: Job | None = None,
          show: bool = True) -> Result:
  """Trains a config in a folder, or goes on with the run that is there.

  Args:
    config: of the run.
    workdir: its folder; made if absent.
    job: what to train, if not what the config says.
    show: write progress to standard error.

  Returns:
    name, workdir, finished, steps, seconds, loss, compilations, parameters,
    trained_parameters, commits_differ (whether the run's starts were of
    several commits); also in WORKDIR/result.json once finished.

  Raises:
    InputError: the config does not fit the model or the folder's run, or the
      folder is no folder but an address.
    NotFiniteError: loss or gradients; the batch is saved.
    RecompiledError, AuditError: see there.
  """
  if re.match(r"[A-Za-z][\w+.-]+:/", str(workdir)):  # a Path drops one slash
    raise InputError(
        f"--workdir {workdir}: this is an address, and a folder is needed; "
        "checkpoints are written to a folder that all processes share. Mount "
        "the bucket and give the folder where it is mounted")
  workdir = Path(workdir).absolute()
  config = manifest.pin(config, workdir)
  manifest.check_same_run(workdir, config)
  done = workdir / "result.json"
  if done.is_file():
    return manifest.read_json(done) | {"resumed": True}
  if is_main():
    workdir.mkdir(parents=True, exist_ok=True)
    manifest.write_json(workdir / "config.json", plain(config))
  job = job or assemble(config, workdir)
  return _Run(config, workdir, job, show).train()


class _Run:
  """What all stages of a run share.

  Attributes:
    rates: of each stage, key -> peak learning rate.
    origins: path -> where its first value came from.
    seconds: spent training, over all starts.
  """

  def __init__(self, config: Config, workdir: Path, job: Job, show: bool):
    self.config, self.workdir, self.job = config, workdir, job
    self.show = show and is_main()
    self.mesh = job.layout.mesh
    check_rows(config, job.layout.shards(ROWS))
    tree, self.origins = job.init()
    self.params: Flat = flatten(tree)
    self.rates = [self._rates(stage) for stage in config.stages]
    self.seconds, self._since = 0.0, time.monotonic()
    self.loss = float("nan")
    self.compiled: dict[str, int] = {}
    self._describe()
    self.batches: Batches | None = None
    self.metrics: MetricsLog | None = None
    self.checkpoints = Checkpoints(workdir, config.keep)

  def train(self) -> Result:
    try:
      finished, index, step = self._stages()
    except BaseException as error:
      for fault in self._close():  # must not hide what came first
        error.add_note(f"and then, closing the run: {fault!r}")
      raise
    for fault in self._close():
      raise fault
    return self._result(finished, index, step)

  def _stages(self) -> tuple[bool, int, int]:
    """Trains what is left; (finished, the last stage, its step)."""
    stages = self.config.stages
    latest = self.checkpoints.latest()
    meta = self.checkpoints.meta(latest) if latest is not None else {}
    first = meta.get("stage", 0)
    self.seconds = meta.get("seconds", 0.0)
    self.loss = meta.get("loss", self.loss)
    self._since = time.monotonic()
    if latest is not None:
      self.say(f"going on after step {latest} (stage "
               f"{stages[first].name!r}, step {meta['stage_step']})")
    if is_main():
      self.metrics = MetricsLog(self.workdir, latest or 0)
    finished = True
    with Stop() as stop:
      for index in range(first, len(stages)):
        state, batches = self._begin(
            index, (latest, meta) if index == first and meta else None)
        state, finished = self._steps(index, state, batches, stop)
        if not finished:
          break
        self._end(index, state)
    return finished, index, int(state.step)

  def _close(self) -> list[Exception]:
    """Ends what runs beside the loop, a save under way included.

    Returns:
      What went wrong meanwhile; everything is closed all the same.
    """
    faults = []
    for thing in (self.batches, self.metrics, self.checkpoints):
      try:
        if hasattr(thing, "close"):
          thing.close()
      except Exception as fault:
        faults.append(fault)
    self.batches = None
    return faults

  def _begin(self, index: int,
             saved: tuple[int, dict[str, Any]] | None,
             ) -> tuple[TrainState, Batches]:
    """A stage's state and data, new or as they were saved."""
    stage = self.config.stages[index]
    trained, frozen = split(self.params, self.rates[index])
    self.params = {}  # from here on the state owns the arrays
    tx = make_optimizer(stage, self.rates[index])
    batches = self.batches = self.job.batches(stage)
    earlier = {base(k) for rates in self.rates[:index] for k in rates}
    kept = {p: x for p, x in frozen.items()
            if manifest.must_keep(p, self.origins, earlier)}
    path = self.workdir / "audit" / f"{index}.json"
    if saved is not None:
      step, meta = saved
      frozen |= self.checkpoints.restore_frozen(index, kept)
      shapes = abstract_state(trained, frozen, tx, self.mesh)
      del trained
      state = self.checkpoints.restore(step, shapes)
      batches.set_state(merge_states(meta["data"]))
      before = manifest.read_json(path)
      audit.check_frozen(before["frozen"], audit.fingerprints(state.frozen),
                         stage.name)
      return state, batches
    before = {"stage": stage.name, "frozen": audit.fingerprints(frozen),
              "trained": audit.fingerprints(trained)}
    self.checkpoints.save_frozen(index, kept)
    if is_main():
      path.parent.mkdir(exist_ok=True)
      manifest.write_json(path, before)
    return new_state(trained, frozen, tx, self.mesh), batches

  def _steps(self, index: int, state: TrainState, batches: Batches,
             stop: Stop) -> tuple[TrainState, bool]:
    """Trains a stage to its end (True) or until it is stopped (False)."""
    stage = self.config.stages[index]
    before = sum(s.steps for s in self.config.stages[:index])
    compilations = Compilations(f"train_step_{index}")
    step_fn = self._step_fn(index, state)
    done = int(state.step)
    progress = Progress(stage.name, stage.steps, done, self.show)
    watch = Watch(self.config, stage, self.workdir, before, batches,
                  progress, self.metrics, compilations)
    finished = True
    batch = watch.next_batch() if done < stage.steps else None
    while done < stage.steps and finished:
      done += 1
      state, metrics = step_fn(state, self.job.place(batch))
      compilations.check(before + done)
      finished = not stop.requested(before + done)
      last = done == stage.steps
      save = last or not finished or (
          (before + done) % self.config.save_every == 0)
      # The state of the data after this batch: before the next one is taken.
      position = batches.get_state() if save else None
      watch.after(done, metrics, batch)
      if not last and finished:
        batch = watch.next_batch()  # while the devices compute
      if save:
        # A step that was not finite must not become a checkpoint, which
        # would pass over its batch; so its metrics are waited for.
        self.loss = watch.flush()
        self._save(index, before + done, state, position)
    progress.close()
    if hasattr(batches, "close"):
      batches.close()
    self.batches = None
    self.compiled[stage.name] = compilations.count
    return state, finished

  def _end(self, index: int, state: TrainState) -> None:
    """Audits a stage and makes its result the parameters of the next."""
    stage = self.config.stages[index]
    path = self.workdir / "audit" / f"{index}.json"
    before = manifest.read_json(path)
    audit.check_frozen(before["frozen"], audit.fingerprints(state.frozen),
                       stage.name)
    changed = audit.moved(before["trained"],
                          audit.fingerprints(state.trained))
    idle = sorted(set(before["trained"]) - set(changed))
    if is_main():
      manifest.write_json(path, before | {"moved": changed, "idle": idle})
    self.say(f"audit of {stage.name!r}: {len(before['frozen'])} frozen arrays "
             f"bit for bit as before, {len(changed)} of "
             f"{len(before['trained'])} trained ones moved")
    if idle:
      self.say(f"  trained but unmoved: {', '.join(idle)}")
    self.params = join(state.trained, state.frozen)

  def _step_fn(self, index: int, state: TrainState) -> Callable:
    stage = self.config.stages[index]
    return make_step(
        self.job.model,
        {name: (self.job.objective(name, stage), weight)
         for name, weight in stage.objectives.items()},
        make_optimizer(stage, self.rates[index]), schedule(stage), state,
        self.job.layout, accumulate=stage.accumulate, seed=self.config.seed,
        name=f"train_step_{index}", measure=stage.measure,
        rates=self.rates[index])

  def _save(self, index: int, step: int, state: TrainState,
            position: dict[str, Any]) -> None:
    self.checkpoints.save(step, state, {
        "stage": index, "step": step, "loss": self.loss,
        "seconds": self._spent(), "data": gather_json(position)})

  def _rates(self, stage: StageConfig) -> dict[str, float]:
    try:
      return trainables(self.params, stage.train)
    except InputError as error:
      raise InputError(f"stage {stage.name!r}, {error}") from error

  def _describe(self) -> None:
    """The manifest: written at the first start, at others checked, with one
    more entry in its list of starts."""
    trained = {key for rates in self.rates for key in rates}
    files = manifest.hash_files(
        {p: self.origins.get(p, "") for p in self.params})
    path = self.workdir / "manifest.json"
    saved = manifest.read_json(path) if path.is_file() else {}
    if saved:
      manifest.check_files(saved["files"], files)
    table = rules.table(self.params, self.mesh)
    about = manifest.describe(self.config, self.params, trained,
                              self.origins, files)
    self.about = manifest.with_start(
        saved, about | {"partition": table.splitlines()})
    if is_main():
      manifest.write_json(path, self.about)
    self.say(table)
    self.say(f"{self.about['trained_parameters']:,} of "
             f"{self.about['parameters']:,} parameters are trained")

  def _result(self, finished: bool, index: int, step: int) -> Result:
    steps = step + sum(s.steps for s in self.config.stages[:index])
    result = {
        "name": self.config.name, "workdir": str(self.workdir),
        "finished": finished, "steps": steps,
        "seconds": round(self._spent(), 1), "loss": self.loss,
        "compilations": self.compiled,
        "parameters": self.about["parameters"],
        "trained_parameters": self.about["trained_parameters"],
        "commits_differ": len(
            {start["commit"] for start in self.about["starts"]}) > 1}
    if is_main():
      path = self.workdir / "manifest.json"
      saved = manifest.read_json(path)
      manifest.write_json(path, saved | {
          "steps": steps, "seconds": result["seconds"]})
      if finished:
        manifest.write_json(self.workdir / "result.json", result)
    return result

  def _spent(self) -> float:
    return self.seconds + time.monotonic() - self._since

  def say(self, text: str) -> None:
    if self.show:
      print(text, file=sys.stderr, flush=True)


def result_line(result: Result) -> str:
  """A run in one line."""
  state = "trained" if result["finished"] else "stopped"
  return (f"{state} {result['name']}: {result['steps']} steps in "
          f"{clock(result['seconds'])}, loss {result['loss']:.4f}, "
          f"{result['trained_parameters']:,} of {result['parameters']:,} "
          f"parameters trained, in {result['workdir']}")
