"""What is asked of a model, and what the right answers are.

A task is one file here plus one line in `TASKS`; a user's own task registers
with `@TASKS.register("name")` from a module in the config's `imports`.
"""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any, Protocol

from align_jax.registry import Registry

TASKS = Registry("task", {
    "easy_vqa": "align_jax.evals.easy_vqa:EasyVQATask",
})


@dataclasses.dataclass(frozen=True)
class Item:
  """One question.

  Attributes:
    id: stable over runs and machines.
    image: the number of its image, in 0 .. task.n_images - 1.
    question: what is asked, without the image's placeholder.
    answer: the truth.
    type: kind of question, for the table by type.
    index: of its example, see `Task.example`.
  """
  id: str
  image: int
  question: str
  answer: str
  type: str
  index: int


class Task(Protocol):
  """What `evaluate` needs to know.

  Attributes:
    name: for tables and file names.
    items: the questions.
    n_images: number of images.
    answers: the closed set of answers.
    training: (question, answer) pairs, for what can be known blind.
  """
  name: str
  items: Sequence[Item]
  n_images: int
  answers: Sequence[str]
  training: Sequence[tuple[str, str]]

  def example(self, item: Item) -> dict[str, Any]:
    """The question as a conversation; see data/example.py."""

  def image(self, image: int) -> Any:
    """An image as `ImageReader` takes it."""

  def exchanged(self, seed: int) -> Sequence[int] | None:
    """For each image one that shows something else; None if unknown."""

  def probe_images(self) -> tuple[
      Sequence[Any], Sequence[Any],
      dict[str, tuple[Sequence[str], Sequence[str]]]] | None:
    """(training images, test images, property -> their two lists of names).

    A name of "" is unknown and left out. None if there is nothing to probe.
    """


def sample(items: Sequence[Item], limit: int, seed: int = 0) -> list[Item]:
  """At most `limit` items: whole images, in a fixed seeded order.

  Whole images, because questions about one image are cheap to ask together;
  intervals are over images for the same reason. The last image may be cut.

  Args:
    items: of a task.
    limit: 0 takes all.
    seed: of the order.
  """
  if not limit or limit >= len(items):
    return list(items)
  images = sorted({item.image for item in items})
  random.Random(f"sample/{seed}").shuffle(images)
  place = {image: i for i, image in enumerate(images)}
  ordered = sorted(items, key=lambda item: place[item.image])
  return ordered[:limit]
