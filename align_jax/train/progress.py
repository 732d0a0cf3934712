"""How far a stage is: a bar on a terminal, plain lines elsewhere."""

import sys
import time

from tqdm import tqdm


class Progress:
  """Writes to standard error, so that standard output stays for results."""

  def __init__(self, name: str, steps: int, done: int = 0,
               show: bool = True):
    """A stage of `steps` steps, of which `done` are done."""
    self.name, self.steps, self.done = name, steps, done
    self._show = show
    self._start: tuple[float, int] | None = None
    self._bar = tqdm(total=steps, initial=done, desc=name, unit="step",
                     dynamic_ncols=True, smoothing=0.1,
                     ) if show and sys.stderr.isatty() else None

  def update(self, step: int, loss: float | None = None) -> None:
    """After each step; the loss is shown when it is given."""
    if self._start is None:  # the first step compiles, and tells no rate
      self._start = time.monotonic(), step
    if self._bar is not None:
      self._bar.update(step - self.done)
      if loss is not None:
        self._bar.set_postfix_str(f"loss {loss:.4f}")
    elif self._show and loss is not None:
      print(f"{self.name} {step}/{self.steps}  loss {loss:.4f}"
            f"{self._left(step)}", file=sys.stderr, flush=True)
    self.done = step

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()

  def _left(self, step: int) -> str:
    began, first = self._start or (0.0, step)
    if step == first:
      return ""
    rate = (time.monotonic() - began) / (step - first)
    return f"  {rate:.2f} s/step  {clock(rate * (self.steps - step))} left"


def clock(seconds: float) -> str:
  """Seconds as m:ss or h:mm:ss."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (f"{hours}:{minutes:02d}:{rest:02d}" if hours
          else f"{minutes}:{rest:02d}")
