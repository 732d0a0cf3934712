"""Being asked to stop: the run saves where it is, and can go on later."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Stop:
  """Turns SIGTERM and the first Ctrl-C into a wish to stop.

  With several processes all must stop after the same step; there JAX's
  preemption service hears the signal and agrees on one.
  """

  _SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self._asked = False
    self._old: dict[int, object] = {}

  def __enter__(self) -> "Stop":
    alone = jax.process_count() == 1
    if alone and threading.current_thread() is threading.main_thread():
      self._old = {s: signal.signal(s, self._hear) for s in self._SIGNALS}
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._old.items():
      signal.signal(number, handler)

  def requested(self, step: int) -> bool:
    """Whether to stop after this step of the run."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked

  def _hear(self, number: int, frame: FrameType | None) -> None:
    del frame
    if self._asked:  # a second time: at once
      signal.signal(number, signal.SIG_DFL)
      raise KeyboardInterrupt
    self._asked = True
