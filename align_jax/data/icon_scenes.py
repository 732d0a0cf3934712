"""Scenes of a few icons: a world of known words, for small experiments.

Two to five things out of some 250, each one word and one icon, each in a
colour, on a pale ground. What stands where is known, so that it can be asked
for, and so that the word of every patch is known too. Scene i of a split is
drawn from (seed, split, i) alone, when it is looked at; nothing is written.
"""

import functools
import io
import random
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from PIL import Image

from align_jax.data.example import PLACEHOLDER, Example, Named
from align_jax.data.linked_images.icons import icon, icons
from align_jax.data.linked_images.scenes import COLORS, pale
from align_jax.errors import InputError
from align_jax.registry import nearest

FORMS = ("captions", "names", "questions", "turns", "told", "placed", "said")
SPLITS = ("text", "tower", "train", "validation", "test")
_MOST = 5  # things in a scene, unless more are asked for
# Kinds of questions; all but the first four are asked where they are named.
KINDS = ("thing", "color", "there", "count", "first", "last", "names")
_ACROSS = 3  # cells across, each for one thing


class Thing(NamedTuple):
  """box: (y0, x0, y1, x1) in pixels of the scene, the ink's own."""
  name: str
  color: str
  box: tuple[int, int, int, int]


class Question(NamedTuple):
  """kind: one of KINDS."""
  kind: str
  question: str
  answer: str


@functools.cache
def concepts(count: int = 0) -> tuple[str, ...]:
  """The words of this world's things; `count` of them, 0 is all.

  Raises:
    InputError: there are not so many.
  """
  names = tuple(icons())
  if not 0 <= count <= len(names):
    raise InputError(f"words is {count}: there are {len(names)} icons")
  return tuple(sorted(random.Random("concepts").sample(names, count))
               ) if count else names


class IconScenes:
  """Captions of scenes, or questions on them.

  form         a sample is
  "captions"   a scene and "a red cat, a blue anchor and a teal bus"
  "names"      a scene and "a cat, a anchor and a bus"
  "questions"  a scene and one question on it
  "turns"      a scene and all questions on it, one after the other
  "told"       as "turns", with the caption in place of the image
  "placed"     likewise, with a word or a dot for each ninth of the image
  "said"       a caption and no image

  Attributes:
    split: "text" for training a language model and "tower" for training a
      tower, which no other split's scenes are part of; "train", "validation"
      or "test".
    scenes: how many there are.
    questions: asked of each scene.
    size: pixels, H = W.
    least: things in a scene, at least.
    most: likewise, at most.
    kinds: of questions, equally often.
    words: of this world, drawn from all once; 0 is all.
    copies: how often each thing stands there, at most, and at least a third
      of it: in its own colour or, where only "names" are said, in any. Of
      these two forms alone, since nothing could be asked of copies.
  """

  def __init__(self, split: str = "train", form: str = "questions",
               scenes: int = 10_000, questions: int = 4, size: int = 96,
               seed: int = 0, least: int = 2, most: int = _MOST,
               kinds: Sequence[str] = KINDS[:4], words: int = 0,
               copies: int = 1):
    faults = [f"{given!r} is none of {', '.join(allowed)}"
              f"{nearest(given, allowed)}"
              for given, allowed in ((split, SPLITS), (form, FORMS),
                                     *((kind, KINDS) for kind in kinds))
              if given not in allowed]
    faults += [f"{name} is {value} (at least {floor})" for name, value, floor in
               (("scenes", scenes, 1), ("questions", questions, 1),
                ("size", size, 8 * _ACROSS), ("least", least, 1),
                ("most", most, least), ("copies", copies, 1))
               if value < floor]
    if not kinds:
      faults.append("kinds: there is none")
    if most * copies > _ACROSS ** 2:
      faults.append(f"most is {most}" + f" and copies is {copies}" * (
          copies > 1) + f" (at most {_ACROSS ** 2} things)")
    if copies > 1 and form not in ("captions", "names"):
      faults.append(f"copies is {copies}, which only the forms 'captions' and "
                    "'names' have")
    if faults:
      raise InputError("icon_scenes: " + "; ".join(faults))
    self.split, self.form, self.scenes = split, form, scenes
    self.questions, self.size, self.seed = questions, size, seed
    self.least, self.most, self.kinds = least, most, tuple(kinds)
    self.copies = copies
    self.words = concepts(words)  # what is missing is said at once

  def __len__(self) -> int:
    return self.scenes * (self.questions if self.form == "questions" else 1)

  def __getitem__(self, index: int) -> Example:
    scene, number = divmod(
        index, self.questions if self.form == "questions" else 1)
    name = f"icon_scenes/{self.split}/{scene}"
    if self.form in ("captions", "names", "said"):
      turns = [("", self.caption(scene, colors=self.form != "names"))]
    elif self.form == "questions":
      name += f"/{number}"
      turns = [self.ask(scene)[number][1:]]
    else:
      turns = [q[1:] for q in self.ask(scene)]
    shown = {"told": self.caption, "placed": self.cells,
             "said": lambda scene: ""}.get(
                 self.form, lambda scene: PLACEHOLDER)(scene)
    said = []
    for at, (asked, answer) in enumerate(turns):
      first = [shown] if shown and not at else []
      user = "\n".join([*first, asked] if asked else first)
      said += [{"role": "user", "content": user},
               {"role": "assistant", "content": answer}]
    return {"id": name, "origin": name, "conversation": said,
            "images": [self.picture(scene)] if shown == PLACEHOLDER else []}

  def picture(self, scene: int) -> Named:
    """A scene's image, not yet drawn."""
    return Named(f"icon_scenes/{self.seed}/{self.split}/{scene}/{self.size}/"
                 f"{self.least}-{self.most}"
                 + f"/{len(self.words)}" * (self.words != concepts())
                 + f"x{self.copies}" * (self.copies > 1),
                 partial(self.image, scene))

  def image(self, scene: int) -> bytes:
    """The PNG of a scene."""
    stream = io.BytesIO()
    # What is drawn is read at once, so that smaller files are no gain.
    self._draw(scene)[0].save(stream, "PNG", compress_level=1)
    return stream.getvalue()

  def things(self, scene: int) -> list[Thing]:
    """What stands in a scene, row by row."""
    return self._draw(scene)[1]

  def caption(self, scene: int, colors: bool = True) -> str:
    """What stands in a scene, row by row, with or without its colours."""
    _, chosen = self._chosen(scene)
    names = dict.fromkeys(f"a {color} {name}" if colors else f"a {name}"
                          for name, color, _ in chosen)  # of copies one
    names = list(names)
    return " and ".join(
        part for part in (", ".join(names[:-1]), names[-1]) if part)

  def cells(self, scene: int) -> str:
    """"here: cat . . . anchor . . . ." of a scene, row by row."""
    said = ["."] * _ACROSS ** 2
    for name, _, place in self._chosen(scene)[1]:
      said[place] = name
    return " ".join(["here:", *said])

  def truth(self, scene: int, grid: int, least: float = 0.25,
            ) -> list[set[str]]:
    """The words of each patch, row by row, [grid * grid].

    Args:
      scene: its number.
      grid: patches across.
      least: share of a patch that a thing's box covers.
    """
    side, things = self.size / grid, self.things(scene)
    found: list[set[str]] = []
    for place in range(grid * grid):
      top, left = (side * x for x in divmod(place, grid))
      own = set()
      for name, _, (y0, x0, y1, x1) in things:
        high = max(0.0, min(y1, top + side) - max(y0, top))
        wide = max(0.0, min(x1, left + side) - max(x0, left))
        if high * wide >= least * side * side:
          own.add(name)
      found.append(own)
    return found

  def ask(self, scene: int) -> list[Question]:
    """`questions` questions on a scene, yes and no equally often.

    The word that is asked for stands last, where a small language model that
    looks back for it needs one step less.
    """
    _, chosen = self._chosen(scene)
    things = [Thing(name, color, (0, 0, 0, 0)) for name, color, _ in chosen]
    rng = self._rng(scene, "questions")
    absent = [n for n in self.words if n not in {t.name for t in things}]
    out = []
    for _ in range(self.questions):
      kind = rng.choice(self.kinds)
      one = rng.choice(things)
      if kind == "thing":
        out.append(Question(kind, f"which thing is {one.color}", one.name))
      elif kind == "color":
        out.append(Question(kind, f"which color is the {one.name}",
                            one.color))
      elif kind == "there":
        here = rng.random() < 0.5
        name = one.name if here else rng.choice(absent)
        out.append(Question(kind, f"is there a {name}",
                            "yes" if here else "no"))
      elif kind == "count":
        out.append(Question(kind, "how many things are there",
                            str(len(things))))
      elif kind in ("first", "last"):
        out.append(Question(kind, f"which thing comes {kind}",
                            things[-(kind == "last")].name))
      else:
        out.append(Question(kind, "what is in the picture",
                            " ".join(t.name for t in things)))
    return out

  def _rng(self, scene: int, what: str) -> random.Random:
    return random.Random(f"{self.seed}/{self.split}/{scene}/{what}")

  def _chosen(self, scene: int) -> tuple[
      random.Random, list[tuple[str, str, int]]]:
    """What stands in a scene, as (name, colour, cell), before it is drawn;
    and the draws that are left for drawing it."""
    rng = self._rng(scene, "scene")
    count = rng.randint(self.least, self.most)
    names = rng.sample(self.words, count)
    colors = rng.sample(list(COLORS), count)  # so that a colour names a thing
    if self.copies > 1:
      chosen = [one for one in zip(names, colors) for _ in range(
          rng.randint(-(-self.copies // 3), self.copies))]
      rng.shuffle(chosen)
      names, colors = zip(*chosen)
      if self.form == "names":
        colors = [rng.choice(list(COLORS)) for _ in names]
      count = len(names)
    places = sorted(rng.sample(range(_ACROSS ** 2), count))
    return rng, list(zip(names, colors, places))

  def _draw(self, scene: int) -> tuple[Image.Image, list[Thing]]:
    rng, chosen = self._chosen(scene)
    onto = Image.new("RGB", (self.size, self.size), pale(rng))
    cell = self.size / _ACROSS
    things = []
    for name, color, place in chosen:
      drawn = icon(name, round(cell * rng.uniform(0.72, 0.92)), COLORS[color])
      row, col = divmod(place, _ACROSS)
      y, x = (round(cell * at + rng.uniform(0, max(cell - length, 0)))
              for at, length in ((row, drawn.height), (col, drawn.width)))
      onto.paste(drawn, (x, y), drawn)
      things.append(Thing(name, color, (
          y, x, min(y + drawn.height, self.size),
          min(x + drawn.width, self.size))))
    return onto, things


def answers(words: int = 0) -> dict[str, tuple[str, ...]]:
  """The closed set of answers to each kind of question that has one."""
  return {**dict.fromkeys(("thing", "first", "last"), concepts(words)),
          "color": tuple(COLORS),
          "there": ("yes", "no"),
          "count": tuple(str(n) for n in range(2, _MOST + 1))}

