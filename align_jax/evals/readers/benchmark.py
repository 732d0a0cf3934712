"""A benchmark read from the files its authors publish.

A reader is a class with `read`, which adds one question after another; the
rest of what `evaluate` needs is here. Readers say which upstream file defines
their layout, and never write.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from align_jax.data.below import below
from align_jax.data.below import folder as existing
from align_jax.data.example import PLACEHOLDER, Example, ImageRef
from align_jax.data.tables import Row
from align_jax.errors import InputError
from align_jax.evals.baselines import exchange_sets
from align_jax.evals.decoding import Beam
from align_jax.evals.tasks import Item

# What LLaVA-1.5 (docs/Evaluation.md) and lmms-eval's task files append.
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = ("\nAnswer with the option's letter from the given choices "
          "directly.")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Benchmark:
  """See `tasks.Task`. Subclasses set the class's attributes and `read`.

  Attributes:
    folder: where the files lie.
  """
  name = ""
  scorer = "exact"
  scoring = "generate"
  max_new_tokens = 16
  beam: Beam | None = None
  answers: Sequence[str] = ()

  def __init__(self, folder: str):
    self.folder = existing(folder, "folder")
    self.items: list[Item] = []
    self.training: Sequence[tuple[str, str]] = ()
    self._sets: list[tuple[ImageRef, ...]] = []
    self._names: dict[Hashable, int] = {}
    self._origins: list[str] = []
    self.read()
    if not self.items:
      raise InputError(f"{self.name}: no questions in {self.folder}")
    self._check_images()
    seen = Counter(item.id for item in self.items)
    twice = [name for name, n in seen.items() if n > 1]
    if twice:
      raise InputError(f"{self.name}: {len(twice)} ids stand for several "
                       f"questions, such as {twice[0]!r}")

  @property
  def n_images(self) -> int:
    return len(self._sets)

  def read(self) -> None:
    """Adds all questions."""
    raise NotImplementedError

  def add(self, row: Row, key: Any, question: str, answer: str,
          images: Sequence[ImageRef] = (), name: Hashable = None,
          kind: str = "all", **fields: Any) -> None:
    """One question.

    Args:
      row: where it is from.
      key: its id in the data set.
      question: with everything that is asked; may hold placeholders of its
        own, one an image.
      answer: the truth.
      images: of the question, in order.
      name: equal for equal sets of images; the images by default.
      kind: `Item.type`.
      **fields: more of the item's.
    """
    name = tuple(images) if name is None else name
    if name not in self._names:
      self._names[name] = len(self._sets)
      self._sets.append(tuple(images))
    written = question.count(PLACEHOLDER)
    if written not in (0, len(images)):
      raise row.fault(f"{written} {PLACEHOLDER} for {len(images)} images")
    self.items.append(Item(
        f"{self.name}/{key}", self._names[name], question, answer, kind,
        index=len(self.items), **fields))
    self._origins.append(row.origin)

  def path(self, row: Row, *parts: Any) -> Path:
    """A file below the folder that a record names."""
    return below(self.folder, str(Path(*map(str, parts))), row.origin)

  def example(self, item: Item) -> Example:
    """The question behind its images, and the answer."""
    images = list(self._sets[item.image])
    asked = item.question
    if PLACEHOLDER not in asked and images:
      asked = PLACEHOLDER * len(images) + "\n" + asked
    return {"id": item.id, "origin": self._origins[item.index],
            "images": images, "conversation": [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": item.answer}]}

  def image(self, image: int) -> list[ImageRef]:
    """The images of a set, in order."""
    return list(self._sets[image])

  def exchanged(self, seed: int) -> Sequence[int] | None:
    """Another set of as many images for each; see `exchange_sets`."""
    return exchange_sets([len(images) for images in self._sets], seed)

  def probe_images(self) -> None:
    """Nothing is known of the images that a probe could read."""

  def _check_images(self) -> None:
    missing = [(path, item) for item in self.items
               for path in self._sets[item.image]
               if isinstance(path, Path) and not path.is_file()]
    if missing:
      path, item = missing[0]
      raise InputError(
          f"{self._origins[item.index]}: the image {path} does not exist "
          f"({len(missing):,} of {len(self.items):,} questions lack one)")


def options_text(options: Sequence[str]) -> str:
  """Options with their letters, a line each.

  >>> options_text(["red", "blue"])
  'A. red\\nB. blue'
  """
  return "\n".join(f"{letter}. {text}"
                   for letter, text in zip(LETTERS, options))


def common(answers: Sequence[str]) -> str:
  """What most people said; the first of several."""
  return Counter(answers).most_common(1)[0][0]
