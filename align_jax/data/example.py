"""What a source gives: one sample, not yet tokens."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict

import numpy as np

from align_jax.errors import InputError

# Stands for one image in a conversation, and is expanded to T positions.
PLACEHOLDER = "<image>"

# An image before it is read. A callable is asked for one of the others.
ImageRef = Path | bytes | Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class Named:
  """An image that is made when it is asked for, with a name of its own.

  Attributes:
    name: nothing else is ever called so; what is known of an image, such as
      a tower's features, is found by it without making the image.
    make: gives the encoded image, always the same.
  """
  name: str
  make: Callable[[], bytes]

  def __call__(self) -> bytes:
    return self.make()


class Message(TypedDict):
  """role: "system", "user" or "assistant"."""
  role: str
  content: str


class Example(TypedDict):
  """One sample.

  Attributes:
    id: stable over runs and machines.
    origin: where it is from, "file:line" or "builder:index", for errors.
    conversation: turns in order; the contents hold one `<image>` an image.
    images: in the order of their placeholders.
    extras: what connectors or objectives declare, see data/batch.py.
  """
  id: str
  origin: str
  conversation: list[Message]
  images: list[ImageRef]
  extras: NotRequired[dict[str, np.ndarray]]


class Source(Protocol):
  """Random access to examples; any thread may ask."""

  def __len__(self) -> int:
    ...

  def __getitem__(self, index: int) -> Example:
    """The example at `index`. Raises BadSample where it cannot be read."""


class BadSample(InputError):
  """A sample that cannot be trained on: where it is, and why not.

  Depending on `on_bad_sample` it ends the run or is put into quarantine.
  """

  def __init__(self, origin: str, reason: str):
    super().__init__(f"{origin}: {reason}")
    self.origin = origin
    self.reason = reason

  def __reduce__(self) -> tuple:
    return BadSample, (self.origin, self.reason)
