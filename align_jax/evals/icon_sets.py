"""What a set of pictures shares, and how its story ends.

Both are a forced choice among four. A story's last sentence is written as well
and compared with the true one, by CIDEr-D beside the accuracy.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from align_jax.data.icon_sets import ASKS, IconSets
from align_jax.evals.baselines import exchange_sets
from align_jax.evals.drawn import DrawnTask
from align_jax.evals.scorers import SCORERS
from align_jax.evals.tasks import Item


class IconSetsTask(DrawnTask):
  """One question on each set, whose companions no training set had.

  The likeliest of four names is the answer: the shared thing and one of each
  picture's others. By chance that is right once in four times.

  Attributes:
    split: "test", or "validation" for choosing a learning rate.
    sets: how many of each number of pictures.
    images: numbers of pictures.
    train_sets: of the split "train", for the question prior.
    things: in each picture.
    words: of this world, drawn from all once; 0 is all.
  """
  name, scoring = "icon_sets", "likelihood"
  asks = "shared"

  def __init__(self, split: str = "test", sets: int = 250,
               images: Sequence[int] = (2, 3, 4), size: int = 96,
               train_sets: int = 2000, things: int = 9, words: int = 0):
    super().__init__(split)
    world = dict(asks=self.asks, things=things, words=words)
    self._sources = [IconSets(split, "images", sets, n, size, **world)
                     for n in images]
    self.sets, self.n_images = sets, sets * len(images)
    self._drawn: dict[int, list[bytes]] = {}
    train = IconSets("train", sets=train_sets, **world)
    question = ASKS[self.asks]
    self.training = [(question, train.set(i).answer)
                     for i in range(train_sets)]
    self.items = []
    for i in range(self.n_images):
      source = self._sources[i // sets]
      found = source.set(i % sets)
      self.items.append(Item(
          f"{self.name}/{split}/{source.images}/{i % sets}", i, question,
          found.answer, f"{source.images} pictures", index=i,
          closed=found.choices))

  def example(self, item: Item) -> dict[str, Any]:
    """The pictures, the question, and the true answer as the last turn."""
    return self._sources[item.index // self.sets][item.index % self.sets]

  def image(self, image: int) -> list[bytes]:
    """The PNGs of a set, drawn once for all passes."""
    if image not in self._drawn:
      source = self._sources[image // self.sets]
      self._drawn[image] = [source.image(image % self.sets, i)
                            for i in range(source.images)]
    return self._drawn[image]

  def exchanged(self, seed: int) -> Sequence[int] | None:
    """For each set another one of as many pictures."""
    return exchange_sets([s.images for s in self._sources
                          for _ in range(self.sets)], seed)

  def measures(self, run: Any) -> dict[str, float]:
    """`chance`, of four choices."""
    del run
    return {"chance": float(np.mean([1 / len(i.closed)
                                     for i in self.items]))}


class IconStoriesTask(IconSetsTask):
  """The last sentence of a story of three to five pictures.

  The likeliest of four sentences is the answer, one in four by chance. By
  `measures` the sentence that is written greedily is scored too, as SAM's
  authors do it.
  """
  name, asks = "icon_stories", "ending"
  max_new_tokens = 12

  def __init__(self, split: str = "test", sets: int = 250,
               images: Sequence[int] = (3, 4, 5), size: int = 96,
               train_sets: int = 2000, things: int = 9, words: int = 0):
    super().__init__(split, sets, images, size, train_sets, things, words)

  def measures(self, run: Any) -> dict[str, float]:
    """`chance`, and of the written sentences CIDEr-D, BLEU and ROUGE-L, with
    the share that is right to the word as `written`."""
    prompts = [run.prompt(self.example(item), item.image)
               for item in self.items]
    said = [run.text(ids) for ids in run.generator().generate(
        prompts, lambda image: run.read(self.image(image)),
        self.max_new_tokens)]
    return super().measures(run) | SCORERS.get("sam")().total(
        said, self.items) | {
            "written": SCORERS.get("exact")().total(
                said, self.items)["accuracy"]}
