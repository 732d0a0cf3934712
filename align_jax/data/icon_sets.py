"""Sets of pictures that share exactly one thing, as text or as scenes.

Each picture shows things of icon scenes, each in a colour of its own and in a
cell of nine; one thing alone stands in every picture of a set. So what to look
for follows from the other pictures, and a connector with few tokens has to
choose.

Read as a story, a set is about that thing: the last sentence says in which
colour it stands in the last picture, and the pictures before say who it is.

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
# What is asked of a set: its shared thing, or the last sentence of its story.
ASKS = {"shared": "what is in every picture?",
        "ending": "in the end, what is in every picture?"}
QUESTION = ASKS["shared"]
_FEWEST, _MOST = 2, 5  # pictures of a set
_ACROSS = 3

# One companion of so many is kept for tests.
_HELD_OUT = 3


class Set(NamedTuple):
  """A set of pictures, not yet drawn.

  Attributes:
    shared: what stands in all of them.
    pictures: of each its things, row by row, as (name, colour).
    cells: of each where they stand, counted row by row.
    answer: to what is asked: its name, or the last sentence.
    choices: four answers in any order, this one among them. Of names, the
      others are of one picture each; of sentences, two are true of other
      things of the last picture, and one of the shared thing before.
  """
  shared: str
  pictures: tuple[tuple[tuple[str, str], ...], ...]
  cells: tuple[tuple[int, ...], ...]
  answer: str
  choices: tuple[str, ...]


def kept_for_test(one: str, other: str) -> bool:
  """Whether these two stand together in tests alone, one of them shared."""
  pair = "/".join(sorted((one, other)))
  return hashlib.sha256(pair.encode()).digest()[0] % _HELD_OUT == 0


def ending(name: str, color: str) -> str:
  """The last sentence of a story.

  >>> ending("cat", "red")
  'in the end the cat is red'
  """
  return f"in the end the {name} is {color}"


@functools.cache
def companions(shared: str, test: bool, count: int = 0) -> tuple[str, ...]:
  """What may stand beside this shared thing, in tests or in training.

  Args:
    shared: the thing.
    test: in tests.
    count: of the world's words; 0 is all.
  """
  return tuple(name for name in concepts(count) if name != shared
               and kept_for_test(shared, name) == test)


class IconSets:
  """Sets of pictures with one question: what all of them show.

  form       a sample is
  "images"   the pictures, the question and its answer
  "told"     the same with the names of each picture's things in its place,
             and their colours where the answer needs them

  Attributes:
    split: "text" for training a language model, "train", "validation" or
      "test".
    sets: how many there are.
    images: pictures of a set, 2 to 5; at least 3 of a story.
    size: pixels, H = W.
    asks: one of ASKS. The pictures are the same.
    things: in each picture.
    words: of this world, drawn from all once; 0 is all.
  """

  def __init__(self, split: str = "train", form: str = "images",
               sets: int = 10_000, images: int = 3, size: int = 96,
               seed: int = 0, asks: str = "shared",
               things: int = _ACROSS ** 2, words: int = 0):
    faults = [f"{given!r} is none of {', '.join(allowed)}"
              f"{nearest(given, allowed)}"
              for given, allowed in ((split, SPLITS), (form, FORMS),
                                     (asks, ASKS))
              if given not in allowed]
    if sets < 1:
      faults.append(f"sets is {sets} (at least 1)")
    fewest = _FEWEST + (asks == "ending")
    if not fewest <= images <= _MOST:
      faults.append(f"images is {images} ({fewest} to {_MOST})")
    if not 3 <= things <= _ACROSS ** 2:
      faults.append(f"things is {things} (3 to {_ACROSS ** 2})")
    if size < 8 * _ACROSS:
      faults.append(f"size is {size} (at least {8 * _ACROSS})")
    fewest = min(
        len(companions(name, split == "test", words))
        for name in concepts(words))
    if not faults and fewest < images * (things - 1):
      faults.append(f"words is {words}: with {images} pictures of "
                    f"{things} things some thing has too few companions "
                    f"({fewest})")
    if faults:
      raise InputError("icon_sets: " + "; ".join(faults))
    self.split, self.form, self.sets = split, form, sets
    self.images, self.size, self.seed = images, size, seed
    self.asks, self.things, self.words = asks, things, words

  def __len__(self) -> int:
    return self.sets

  def __getitem__(self, index: int) -> Example:
    found = self.set(index)
    if self.form == "told":
      # What a small language model finds stands behind what it looks for.
      told = "{0} {1}" if self.asks == "ending" else "{0}"
      shown = [" ".join(["here:", *(told.format(*t) for t in things)])
               for things in found.pictures]
    else:
      shown = [PLACEHOLDER] * self.images
    name = f"icon_sets/{self.asks}/{self.split}/{index}"
    return {"id": name, "origin": name,
            "conversation": [
                {"role": "user", "content": "\n".join(
                    [*shown, ASKS[self.asks]])},
                {"role": "assistant", "content": found.answer}],
            "images": [] if self.form == "told" else [
                self.picture(index, i) for i in range(self.images)]}

  def set(self, index: int) -> Set:
    """What a set shows."""
    rng = self._rng(index, "set")
    shared = rng.choice(concepts(self.words))
    beside = self.things - 1
    others = rng.sample(companions(shared, self.split == "test",
                                   self.words), self.images * beside)
    pictures, cells = [], []
    for i in range(self.images):
      names = [shared, *others[i * beside:(i + 1) * beside]]
      rng.shuffle(names)
      colors = rng.sample(list(COLORS), self.things)
      pictures.append(tuple(zip(names, colors)))
      cells.append(tuple(sorted(rng.sample(range(_ACROSS ** 2),
                                           self.things))))
    choices = (self._sentences if self.asks == "ending" else self._names)(
        rng, shared, pictures)
    return Set(shared, tuple(pictures), tuple(cells), choices[0],
               tuple(sorted(choices)))

  def _names(self, rng: random.Random, shared: str,
             pictures: list[tuple[tuple[str, str], ...]]) -> list[str]:
    """The shared thing, and others from one picture after the other."""
    choices = [shared]
    while len(choices) < 4:
      names = [n for n, _ in pictures[(len(choices) - 1) % self.images]
               if n not in choices]
      choices.append(rng.choice(names))
    return choices

  def _sentences(self, rng: random.Random, shared: str,
                 pictures: list[tuple[tuple[str, str], ...]]) -> list[str]:
    """The last sentence, and three that are not."""
    before, last = ([dict(p) for p in pictures[:-1]], dict(pictures[-1]))
    others = rng.sample([n for n in last if n != shared], 2)
    # As it was before; if it never was another, as another thing is now.
    hues = [p[shared] for p in before if p[shared] != last[shared]]
    hue = rng.choice(hues or [last[others[0]]])
    return [ending(shared, last[shared]), ending(shared, hue),
            *(ending(name, last[name]) for name in others)]

  def picture(self, index: int, place: int) -> Named:
    """A picture of a set, not yet drawn."""
    return Named(f"icon_sets/{self.seed}/{self.split}/{self.images}/{index}/"
                 f"{place}/{self.size}/{self.things}/{self.words}",
                 partial(self.image, index, place))

  def image(self, index: int, place: int) -> bytes:
    """The PNG of a picture."""
    found = self.set(index)
    rng = self._rng(index, f"picture {place}")
    onto = Image.new("RGB", (self.size, self.size), pale(rng))
    cell = self.size / _ACROSS
    for at, (name, color) in zip(found.cells[place], found.pictures[place]):
      drawn = icon(name, round(cell * rng.uniform(0.72, 0.92)), COLORS[color])
      row, col = divmod(at, _ACROSS)
      y, x = (round(cell * p + rng.uniform(0, max(cell - length, 0)))
              for p, length in ((row, drawn.height), (col, drawn.width)))
      onto.paste(drawn, (x, y), drawn)
    stream = io.BytesIO()
    onto.save(stream, "PNG")
    return stream.getvalue()

  def _rng(self, index: int, what: str) -> random.Random:
    return random.Random(f"sets/{self.seed}/{self.split}/{self.images}/"
                         f"{index}/{what}")
