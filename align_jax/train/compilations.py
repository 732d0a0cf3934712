"""How often a function was compiled: a step is compiled once a stage."""

from collections import Counter

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_times: Counter[str] = Counter()
_seconds: Counter[str] = Counter()
_listening = False


class RecompiledError(RuntimeError):
  """A step was compiled again: something about its input has changed."""


class Compilations:
  """Counts the compilations of one jitted function, by its name."""

  def __init__(self, name: str):
    """Counts from now on."""
    global _listening
    if not _listening:
      jax.monitoring.register_event_duration_secs_listener(_heard)
      _listening = True
    self.name = f"jit({name})"
    self._before = _times[self.name], _seconds[self.name]

  @property
  def count(self) -> int:
    return _times[self.name] - self._before[0]

  @property
  def seconds(self) -> float:
    return _seconds[self.name] - self._before[1]

  def check(self, step: int) -> None:
    """Raises RecompiledError at the second compilation."""
    if self.count > 1:
      raise RecompiledError(
          f"step {step} compiled {self.name} for the {self.count}th time; "
          "all batches of a stage must have the same shapes and dtypes")


def _heard(event: str, seconds: float, **labels: object) -> None:
  if event == _EVENT:
    name = str(labels.get("fun_name", ""))
    _times[name] += 1
    _seconds[name] += seconds
