"""Looks at each step, one step late, so that the devices never wait."""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from align_jax.config import Config, StageConfig
from align_jax.data.quarantine import quarantined
from align_jax.train.compilations import Compilations, RecompiledError
from align_jax.train.job import Batches
from align_jax.train.metrics import MetricsLog, memory
from align_jax.train.progress import Progress
from align_jax.train.select import flatten


class NotFiniteError(RuntimeError):
  """A loss or gradient was not finite; the batch is in a file."""


class Watch:
  """Metrics, progress and guards of one stage."""

  def __init__(self, config: Config, stage: StageConfig, workdir: Path,
               before: int, batches: Batches, progress: Progress,
               metrics: MetricsLog | None, compilations: Compilations):
    """Watches a stage that `before` steps of the run precede."""
    self.config, self.stage, self.workdir = config, stage, workdir
    self.before, self.batches = before, batches
    self.progress, self.metrics = progress, metrics
    self.compilations = compilations
    self.loss = float("nan")
    self._late: tuple[int, dict[str, jax.Array], dict[str, Any]] | None = None
    self._shapes: dict[str, Any] = {}
    self._first = True
    self._restart()

  def next_batch(self) -> dict[str, Any]:
    """The next batch of this process, its shapes checked.

    Raises:
      RecompiledError: it is shaped otherwise than the first.
    """
    start = time.monotonic()
    batch = next(self.batches)
    self._waited += time.monotonic() - start
    shapes = {name: (x.shape, str(x.dtype))
              for name, x in flatten(batch).items()}
    self._shapes = self._shapes or shapes
    if shapes != self._shapes:
      wrong = [f"{name}: {shapes.get(name)}, first {self._shapes.get(name)}"
               for name in sorted(shapes.keys() | self._shapes.keys())
               if shapes.get(name) != self._shapes.get(name)]
      raise RecompiledError("a batch of another shape would compile the step "
                            "again: " + "; ".join(wrong))
    return batch

  def after(self, step: int, metrics: dict[str, jax.Array],
            batch: dict[str, Any]) -> None:
    """Notes a step that was started, and looks at the one before it."""
    self.flush()
    self._late = step, metrics, batch

  def flush(self) -> float:
    """Waits for the last step noted; its loss.

    Raises:
      NotFiniteError: names the file that holds the batch.
    """
    if self._late is None:
      return self.loss
    step, metrics, batch = self._late
    self._late = None
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    total = self.before + step
    if not values.pop("finite"):
      raise NotFiniteError(
          f"step {total} (stage {self.stage.name!r}, step {step}): loss "
          f"{values['loss']}, gradient norm {values['grad_norm']}; the "
          f"parameters stayed as they were, the batch is in "
          f"{self._save(total, batch)}")
    self.loss = values["loss"]
    self._steps += 1
    self._tokens += values["tokens"]
    self._images += values.get("images", 0.0)
    due = step % self.config.log_every == 0 or step == self.stage.steps
    if due or self._first:
      self._write(step, values)
    self.progress.update(step, self.loss if due or self._first else None)
    if due or self._first:
      self._first = False
      self._restart()
    return self.loss

  def _write(self, step: int, values: dict[str, float]) -> None:
    if self.metrics is None:
      return
    share = values.pop("schedule")
    rates = {f"learning_rate/{pattern}": share * peak
             for pattern, peak in self.stage.train.items()}
    seconds = max(time.monotonic() - self._start, 1e-9)
    speed = {"step_seconds": seconds / self._steps,
             "tokens_per_second": self._tokens / seconds,
             "images_per_second": self._images / seconds,
             "input_wait_seconds": self._waited / self._steps}
    if self._first:  # this step compiled, and tells no speed
      speed = {"compile_seconds": self.compilations.seconds}
    self.metrics.write(self.before + step, {
        "stage": self.stage.name, "stage_step": step, **values, **rates,
        **speed, **memory(), "compilations": self.compilations.count,
        "quarantined": quarantined(self.workdir)})

  def _restart(self) -> None:
    """Begins a new window of speed."""
    self._start = time.monotonic()
    self._steps = 0
    self._tokens = self._images = self._waited = 0.0

  def _save(self, step: int, batch: dict[str, Any]) -> Path:
    process = f"_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = self.workdir / f"bad_batch_{step}{process}.npz"
    np.savez_compressed(path, **{name.replace("/", "."): x
                                 for name, x in flatten(batch).items()})
    return path
