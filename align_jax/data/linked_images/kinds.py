"""One function a kind of sample: images, a question, the answer.

The images of a sample share exactly one thing, or, in a story, belong
together; `facts` says what. Everything is drawn from the `random.Random` that
is handed in.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from PIL import Image

from align_jax.data.linked_images import scenes
from align_jax.data.linked_images.icons import icons


class Sample(NamedTuple):
  """A set of images with a question.

  Attributes:
    images: in order, each scenes.SIZE square.
    instruction: the question; the images stand before it.
    output: the answer.
    facts: what is true of the set, for scoring: `shared`, `images` (the names
      in each) and so on.
  """
  images: list[Image.Image]
  instruction: str
  output: str
  facts: dict[str, Any]


def _a(name: str) -> str:
  return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _listed(names: Sequence[str]) -> str:
  return (names[0] if len(names) == 1 else
          f"{', '.join(names[:-1])} and {names[-1]}")


COUNTS = {2: "both", 3: "all three", 4: "all four"}


def icon_grid(rng: random.Random) -> Sample:
  """Two to four grids of icons that have one icon in common."""
  count = rng.choice(list(COUNTS))
  rows, cols = rng.choice(((2, 3), (3, 3), (3, 4), (4, 4)))
  cells = rows * cols
  names = rng.sample(list(icons()), 1 + count * (cells - 1))
  shared, others = names[0], names[1:]
  images, inside = [], []
  for i in range(count):
    own = [shared, *others[i * (cells - 1):(i + 1) * (cells - 1)]]
    rng.shuffle(own)
    images.append(scenes.grid(rng, own, rows, cols))
    inside.append(own)
  every = COUNTS[count]
  question = rng.choice((
      f"Which icon is in {every} pictures?",
      f"Can you find the one icon that {every} images have?",
      f"Name the icon that appears in {every} grids."))
  return Sample(images, question, f"It is {_a(shared)} icon.",
                {"shared": shared, "images": inside})


def composite(rng: random.Random) -> Sample:
  """One thing at other poses, before other backgrounds, beside others."""
  count = rng.choice(list(COUNTS))
  names = rng.sample(list(icons()), 1 + 2 * count)
  shared, others = names[0], names[1:]
  # Nor is a colour shared: each thing beside it has one of its own.
  color, *hues = rng.sample(list(scenes.COLORS), 1 + 2 * count)
  images, inside = [], []
  for i in range(count):
    onto = scenes.landscape(rng)
    own = [shared, *others[2 * i:2 * i + 2]]
    spots = rng.sample([(60, 75), (165, 70), (70, 165), (160, 160)], 3)
    for name, (x, y) in zip(own, spots):
      hue = color if name == shared else hues.pop()
      scenes.paste(onto, scenes.posed(rng, name, 76, scenes.COLORS[hue]),
                   (x + rng.uniform(-10, 10), y + rng.uniform(-10, 10)))
    images.append(onto)
    inside.append(own)
  every = COUNTS[count]
  question = rng.choice((
      f"Please describe the thing that is visible in {every} pictures.",
      f"What do {every} pictures show, whatever is around it?",
      f"One thing stands in {every} scenes. Which?"))
  return Sample(images, question,
                f"The thing in {every} pictures is {_a(color)} {shared}.",
                {"shared": shared, "color": color, "images": inside})


_FIRST = ("Ada", "Boris", "Carla", "Dmitri", "Elena", "Felix", "Grace", "Hugo",
          "Ines", "Jonas", "Karin", "Luis", "Mona", "Nils", "Olga", "Pavel")
_LAST = ("Abel", "Brandt", "Castro", "Duval", "Engel", "Fabre", "Grimm",
         "Haas", "Ivanov", "Jansen", "Keller", "Lange", "Moreau", "Novak",
         "Olsen", "Petrov")
_GENRES = ("mystery", "science", "cooking", "travel", "history", "poetry",
           "medicine", "fantasy")
_TITLES = ("The Hidden {}", "A Book of the {}", "Return of the {}",
           "My First {}", "The Last {}", "Under the {}")


def cover(rng: random.Random) -> Sample:
  """Two book covers with the same author or of the same genre, not both."""
  by = rng.choice(("author", "genre"))
  authors = [" ".join(p) for p in zip(rng.sample(_FIRST, 2),
                                      rng.sample(_LAST, 2))]
  genres = rng.sample(_GENRES, 2)
  if by == "author":
    authors[1] = authors[0]
  else:
    genres[1] = genres[0]
  titles = rng.sample(_TITLES, 2)
  emblems = rng.sample(list(icons()), 2)
  inks = rng.sample(list(scenes.COLORS.values()), 2)
  images = [scenes.card(rng, title.format(emblem.capitalize()), author, genre,
                        emblem, ink)
            for title, author, genre, emblem, ink in zip(
                titles, authors, genres, emblems, inks)]
  question = rng.choice((
      "What is the connection between these two books?",
      "What do these two covers have in common?"))
  shared = authors[0] if by == "author" else genres[0]
  answer = (f"They share the same author, {shared}." if by == "author" else
            f"They are both {shared} books.")
  return Sample(images, question, answer, {
      "shared": shared, "by": by, "images": [
          [a, g] for a, g in zip(authors, genres)]})


_HEROES = ("cat", "dog", "robot", "dragon", "ghost", "horse", "frog", "crow")


def story(rng: random.Random) -> Sample:
  """Three to five panels; only the earlier ones say how the last one ends.

  A hero meets a thing in each panel but the last, where there is a box: what
  went into it is to be seen in the panels before.
  """
  known = [h for h in _HEROES if h in icons()]
  hero, color = rng.choice(known), rng.choice(list(scenes.COLORS))
  count = rng.randint(3, 5)
  things = rng.sample([n for n in icons() if n not in (*known, "box")],
                      count - 1)
  images = []
  for name in [*things, "box"]:
    onto = scenes.landscape(rng)
    scenes.paste(onto, scenes.posed(rng, hero, 84, scenes.COLORS[color]),
                 (70, rng.uniform(90, 150)))
    hue = scenes.COLORS[rng.choice(list(scenes.COLORS))]
    scenes.paste(onto, scenes.posed(rng, name, 70, hue),
                 (165, rng.uniform(80, 160)))
    images.append(onto)
  question = rng.choice((
      "These pictures tell a story. In each the hero finds something, and "
      "packs it all in the end. Write the last sentence.",
      "What does the hero pack into the box in the last picture, of all that "
      "was found before?"))
  packed = _listed([f"the {t}" for t in things])
  return Sample(images, question,
                f"The {hero} packs {packed} into the box.",
                {"shared": hero, "packed": things, "images": [
                    [hero, t] for t in [*things, "box"]]})


KINDS: dict[str, Callable[[random.Random], Sample]] = {
    "icon_grid": icon_grid, "composite": composite, "cover": cover,
    "story": story}


def draw(seed: int, index: int, kinds: Sequence[str] = tuple(KINDS),
         ) -> tuple[str, Sample]:
  """Sample `index` of a seed: its kind and itself, on any machine alike."""
  rng = random.Random(f"{seed}/{index}")
  kind = rng.choice(list(kinds))
  return kind, KINDS[kind](rng)
