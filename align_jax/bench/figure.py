"""One measured number, with all that is needed to read it."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Figure:
  """A number of a benchmark.

  Attributes:
    key: its name in the JSON, such as "c7_time".
    what: in words: "streaming / plain, forward and backward".
    value: the number.
    shapes: of what was run, "N=1024 V=32000 D=512".
    dtype: of the computation.
    unit: "ratio", or seconds, tokens/s, MiB, share ...
    goal: what it shall reach; None where there is no goal.
    limit: the fail line; None for the goal itself.
    higher: whether more is better.
    rounds: how often it was measured; 0 for what is not timed.
    spread: first and third quartile of the rounds; None of one round.
    parts: the absolute numbers behind it, by name.
    flops: how FLOPs were counted, where the figure needs them.
  """
  key: str
  what: str
  value: float
  shapes: str
  dtype: str
  unit: str = "ratio"
  goal: float | None = None
  limit: float | None = None
  higher: bool = False
  rounds: int = 0
  spread: tuple[float, float] | None = None
  parts: Mapping[str, float] = dataclasses.field(default_factory=dict)
  flops: str = ""

  @property
  def met(self) -> bool | None:
    """Whether it reaches its goal; None without one."""
    return None if self.goal is None else self._reaches(self.goal)

  @property
  def failed(self) -> bool:
    """Whether it is beyond the fail line."""
    line = self.goal if self.limit is None else self.limit
    return line is not None and not self._reaches(line)

  def _reaches(self, line: float) -> bool:
    return self.value >= line if self.higher else self.value <= line

  def as_json(self) -> dict[str, Any]:
    """Plain JSON; a ratio is under "ratio", anything else under "value"."""
    fields = dataclasses.asdict(self)
    key, value = fields.pop("key"), fields.pop("value")
    del key
    name = "ratio" if self.unit == "ratio" else "value"
    found = {name: value, "met": self.met, "failed": self.failed}
    return found | {k: list(v) if isinstance(v, tuple) else v
                    for k, v in fields.items()}
