"""Sets of pictures that share exactly one thing, as text or as scenes.

Each picture shows nine things of icon scenes in nine colours, one in each
cell; one thing alone stands in every picture of a set. So what to look for
follows from the other pictures, and a connector with few tokens has to choose.

Which things stand beside the shared one is held apart: for each thing its
companions of the split "test" are never its companions in training, so that
tests ask for new combinations of known icons.
"""

import functools
import hashlib
import io
import random
from functools import partial
from typing import NamedTuple

from PIL import Image

from align_jax.data.example import PLACEHOLDER, Example, Named
from align_jax.data.icon_scenes import concepts
from align_jax.data.linked_images.icons import icon
from align_jax.data.linked_images.scenes import COLORS, pale
from align_jax.errors import InputError
from align_jax.registry import nearest

FORMS = ("images", "told")
SPLITS = ("text", "train", "validation", "test")
QUESTION = "what is in every picture?"
_ACROSS = 3
THINGS = _ACROSS ** 2

# One companion of so many is kept for tests.
_HELD_OUT = 3


class Set(NamedTuple):
  """A set of pictures, not yet drawn.

  Attributes:
    shared: what stands in all of them.
    pictures: of each its things, row by row, as (name, colour).
    choices: the shared thing and one other of each picture, in any order; at
      least four names.
  """
  shared: str
  pictures: tuple[tuple[tuple[str, str], ...], ...]
  choices: tuple[str, ...]


def kept_for_test(one: str, other: str) -> bool:
  """Whether these two stand together in tests alone, one of them shared."""
  pair = "/".join(sorted((one, other)))
  return hashlib.sha256(pair.encode()).digest()[0] % _HELD_OUT == 0


@functools.cache
def companions(shared: str, test: bool) -> tuple[str, ...]:
  """What may stand beside this shared thing, in tests or in training."""
  return tuple(name for name in concepts() if name != shared
               and kept_for_test(shared, name) == test)


class IconSets:
  """Sets of pictures with one question: what all of them show.

  form       a sample is
  "images"   the pictures, the question and the shared thing's name
  "told"     the same with the names of each picture's things in its place

  Attributes:
    split: "text" for training a language model, "train", "validation" or
      "test".
    sets: how many there are.
    images: pictures of a set, 2 to 4.
    size: pixels, H = W.
  """

  def __init__(self, split: str = "train", form: str = "images",
               sets: int = 10_000, images: int = 3, size: int = 96,
               seed: int = 0):
    faults = [f"{given!r} is none of {', '.join(allowed)}"
              f"{nearest(given, allowed)}"
              for given, allowed in ((split, SPLITS), (form, FORMS))
              if given not in allowed]
    if sets < 1:
      faults.append(f"sets is {sets} (at least 1)")
    if not 2 <= images <= 4:
      faults.append(f"images is {images} (2 to 4)")
    if size < 8 * _ACROSS:
      faults.append(f"size is {size} (at least {8 * _ACROSS})")
    if faults:
      raise InputError("icon_sets: " + "; ".join(faults))
    self.split, self.form, self.sets = split, form, sets
    self.images, self.size, self.seed = images, size, seed
    concepts()  # what is missing is said at once

  def __len__(self) -> int:
    return self.sets

  def __getitem__(self, index: int) -> Example:
    found = self.set(index)
    if self.form == "told":
      shown = [" ".join(name for name, _ in things)
               for things in found.pictures]
    else:
      shown = [PLACEHOLDER] * self.images
    name = f"icon_sets/{self.split}/{index}"
    return {"id": name, "origin": name,
            "conversation": [
                {"role": "user", "content": "\n".join([*shown, QUESTION])},
                {"role": "assistant", "content": found.shared}],
            "images": [] if self.form == "told" else [
                self.picture(index, i) for i in range(self.images)]}

  def set(self, index: int) -> Set:
    """What a set shows."""
    rng = self._rng(index, "set")
    shared = rng.choice(concepts())
    others = rng.sample(companions(shared, self.split == "test"),
                        self.images * (THINGS - 1))
    pictures = []
    for i in range(self.images):
      names = [shared, *others[i * (THINGS - 1):(i + 1) * (THINGS - 1)]]
      rng.shuffle(names)
      colors = rng.sample(list(COLORS), THINGS)
      pictures.append(tuple(zip(names, colors)))
    choices = [shared]
    while len(choices) < 4:  # from one picture after the other
      names = [n for n, _ in pictures[(len(choices) - 1) % self.images]
               if n not in choices]
      choices.append(rng.choice(names))
    return Set(shared, tuple(pictures), tuple(sorted(choices)))

  def picture(self, index: int, place: int) -> Named:
    """A picture of a set, not yet drawn."""
    return Named(f"icon_sets/{self.seed}/{self.split}/{self.images}/{index}/"
                 f"{place}/{self.size}", partial(self.image, index, place))

  def image(self, index: int, place: int) -> bytes:
    """The PNG of a picture."""
    things = self.set(index).pictures[place]
    rng = self._rng(index, f"picture {place}")
    onto = Image.new("RGB", (self.size, self.size), pale(rng))
    cell = self.size / _ACROSS
    for at, (name, color) in enumerate(things):
      drawn = icon(name, round(cell * rng.uniform(0.72, 0.92)), COLORS[color])
      row, col = divmod(at, _ACROSS)
      y, x = (round(cell * p + rng.uniform(0, max(cell - length, 0)))
              for p, length in ((row, drawn.height), (col, drawn.width)))
      onto.paste(drawn, (x, y), drawn)
    stream = io.BytesIO()
    onto.save(stream, "PNG")
    return stream.getvalue()

  def _rng(self, index: int, what: str) -> random.Random:
    return random.Random(f"sets/{self.seed}/{self.split}/{index}/{what}")
