"""easy-VQA as a task: the official split's questions, one at a time."""

from collections.abc import Sequence
from typing import Any

from align_jax.data.easy_vqa.facts import COLORS, SHAPES, derive, question_type
from align_jax.data.easy_vqa.source import EasyVQA
from align_jax.evals.baselines import exchange
from align_jax.evals.tasks import Item

KINDS = {"shape": SHAPES, "color": COLORS}


class EasyVQATask:
  """About ten questions on each of 1,000 test images.

  Attributes:
    split: that is asked: "test"; "train" for looking at what was learnt by
      heart; "train[90%:]" for choosing a learning rate.
    train: what was trained on, for the question prior and the probe.
    data_dir: where the builder keeps its files; "" is the default cache.
    probe: training images that the linear probe is fitted on.
  """
  name, scorer, scoring, max_new_tokens = "easy_vqa", "exact", "generate", 0
  beam = None
  answers = ("yes", "no", *SHAPES, *COLORS)

  def __init__(self, split: str = "test", data_dir: str = "",
               probe: int = 2000, train: str = "train"):
    self.split, self.probe = split, probe
    self._source = EasyVQA(split, "questions", data_dir)
    self._train = EasyVQA(train, "questions", data_dir)
    self.n_images = len(self._source.images)
    self.training = [pair for facts in self._train.images
                     for pair in zip(facts["questions"], facts["answers"])]
    self.items: list[Item] = []
    for image, facts in enumerate(self._source.images):
      for number, (question, answer) in enumerate(
          zip(facts["questions"], facts["answers"])):
        self.items.append(Item(
            f"{self.name}/{self._source.split}/{facts['image_id']}/{number}",
            image, question, answer, question_type(question, answer),
            index=len(self.items)))

  def example(self, item: Item) -> dict[str, Any]:
    """<image>, the question, and the true answer as the last turn."""
    return self._source[item.index]

  def image(self, image: int) -> bytes:
    """The PNG of a test image."""
    return self._source.image(self._source.images[image]["record"])

  def facts(self, image: int) -> dict[str, Any]:
    """What is known of a test image: shape, color ("" if open), ..."""
    return self._source.images[image]

  def exchanged(self, seed: int) -> Sequence[int]:
    """For each image one of another shape and another colour."""
    return exchange([_possible(facts) for facts in self._source.images], seed)

  def probe_images(self) -> tuple[
      Sequence[bytes], Sequence[bytes],
      dict[str, tuple[Sequence[str], Sequence[str]]]]:
    """Training and test images with their shapes and colours."""
    train, test = self._train.images[:self.probe], self._source.images
    return (_Lazy(self._train, train), _Lazy(self._source, test),
            {kind: ([f[kind] for f in train], [f[kind] for f in test])
             for kind in KINDS})


class _Lazy(Sequence):
  """Images read when they are looked at."""

  def __init__(self, source: EasyVQA, facts: Sequence[dict[str, Any]]):
    self._source, self._facts = source, facts

  def __len__(self) -> int:
    return len(self._facts)

  def __getitem__(self, index: int) -> bytes:
    return self._source.image(self._facts[index]["record"])


def _possible(facts: dict[str, Any]) -> dict[str, frozenset[str]]:
  """What each kind may be, by the image's own questions."""
  return {kind: frozenset([facts[kind]] if facts[kind] else [
      name for name in names if _fits(facts, name)])
          for kind, names in KINDS.items()}


def _fits(facts: dict[str, Any], name: str) -> bool:
  try:
    derive([*facts["questions"], f"is there a {name}?"],
           [*facts["answers"], "yes"])
  except ValueError:
    return False
  return True
