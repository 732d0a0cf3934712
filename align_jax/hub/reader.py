"""What every checkpoint file offers, whatever its format."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np


class Reader(Protocol):
  """An open checkpoint."""

  def keys(self) -> Iterable[str]:
    ...

  def shape(self, key: str) -> tuple[int, ...]:
    ...

  def dtype(self, key: str) -> np.dtype | None:
    """None for one that is not read."""

  def read(self, key: str, index: tuple[slice, ...]) -> np.ndarray:
    """Part of a tensor, no more of the file than that."""

  def origin(self, key: str) -> str:
    """"FILE:KEY"."""
