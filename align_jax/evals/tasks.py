"""What is asked of a model, and what the right answers are.

A task is one file here plus one line in `TASKS`; a user's own task registers
with `@TASKS.register("name")` from a module in the config's `imports`.
"""

import dataclasses
import inspect
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from align_jax.errors import InputError
from align_jax.evals.decoding import Beam
from align_jax.registry import Registry

_READERS = "align_jax.evals.readers"
TASKS = Registry("task", {
    "easy_vqa": "align_jax.evals.easy_vqa:EasyVQATask",
    "documents": "align_jax.evals.documents:DocumentsTask",
    "icon_scenes": "align_jax.evals.icon_scenes:IconScenesTask",
    "icon_sets": "align_jax.evals.icon_sets:IconSetsTask",
    "icon_stories": "align_jax.evals.icon_sets:IconStoriesTask",
} | {name: f"{_READERS}.{place}" for name, place in {
    # AlignVLM's nine document sets, and VCR
    "docvqa": "docvqa:DocVqa",
    "infovqa": "docvqa:InfoVqa",
    "deepform": "doc_downstream:DeepForm",
    "klc": "doc_downstream:Klc",
    "wtq": "doc_downstream:Wtq",
    "tabfact": "doc_downstream:TabFact",
    "chartqa": "chartqa:ChartQa",
    "textvqa": "textvqa:TextVqa",
    "tablevqa": "tablevqa:TableVqa",
    "vcr": "vcr:Vcr",
    # images in general
    "capsbench": "capsbench:CapsBench",
    "coco_captions": "coco_captions:CocoCaptions",
    "gqa": "gqa:Gqa",
    "mmbench": "mmbench:MmBench",
    "mmmu": "mmmu:Mmmu",
    "mmvet": "mmvet:MmVet",
    "mmvp": "mmvp:Mmvp",
    "ocrbench": "ocrbench:OcrBench",
    "pope": "pope:Pope",
    "scienceqa_img": "scienceqa:ScienceQaImg",
    "seedbench": "seedbench:SeedBench",
    "stanford_dogs": "stanford_dogs:StanfordDogs",
    "vizwiz": "vizwiz:VizWiz",
    "vqav2": "vqav2:VqaV2",
    # several images at once, and none
    "demon": "image_sets:DemonTask",
    "sam": "image_sets:SamSet",
    "mmlu": "mmlu:Mmlu",
}.items()})


@dataclasses.dataclass(frozen=True)
class Item:
  """One question.

  Attributes:
    id: stable over runs and machines.
    image: the number of its image, or of its set of images, in
      0 .. task.n_images - 1.
    question: what is asked, without the images' placeholders.
    answer: the truth.
    type: kind of question, for the table by type.
    index: of its example, see `Task.example`.
    answers: all that its scorer accepts or compares with; of people asked,
      one each. `answer` alone by default.
    options: of a multiple choice, in the order of their letters.
    closed: the closed set of answers to this question, where that is not
      the task's.
    facts: what else its scorer needs, such as {"group": "17"}.
  """
  id: str
  image: int
  question: str
  answer: str
  type: str
  index: int
  answers: tuple[str, ...] = ()
  options: tuple[str, ...] = ()
  closed: tuple[str, ...] = ()
  facts: Mapping[str, Any] = dataclasses.field(
      default_factory=dict, hash=False)

  def __post_init__(self) -> None:
    object.__setattr__(self, "answers",
                       tuple(self.answers) or (self.answer,))


class Task(Protocol):
  """What `evaluate` needs to know.

  Attributes:
    name: for tables and file names.
    items: the questions.
    n_images: number of images, or of sets of them.
    answers: the closed set of answers; empty where there is none. Of these,
      an item with options has as many as it has options.
    training: (question, answer) pairs, for what can be known blind; empty
      for a benchmark without a training split, whose question prior is then
      unknown.
    scorer: name in SCORERS.
    scoring: how answers are had where the user does not say: "generate" or
      "likelihood".
    max_new_tokens: answers are cut there; 0 leaves it to the config.
    beam: the search of a published evaluation; None is greedy.

  A task may have `measures(run) -> {name: figure}`: what else it knows to
  measure of a run, such as how often a visual token's nearest word is true.
  """
  name: str
  items: Sequence[Item]
  n_images: int
  answers: Sequence[str]
  training: Sequence[tuple[str, str]]
  scorer: str = "exact"
  scoring: str = "generate"
  max_new_tokens: int = 0
  beam: Beam | None = None

  def example(self, item: Item) -> dict[str, Any]:
    """The question as a conversation; see data/example.py."""

  def image(self, image: int) -> Any:
    """An image as `ImageReader` takes it, or a list of them."""

  def exchanged(self, seed: int) -> Sequence[int] | None:
    """For each image one to show instead; None if there is nothing to show.

    Where a task knows what its images show, the other surely differs.
    """

  def probe_images(self) -> tuple[
      Sequence[Any], Sequence[Any],
      dict[str, tuple[Sequence[str], Sequence[str]]]] | None:
    """(training images, test images, property -> their two lists of names).

    A name of "" is unknown and left out. None if there is nothing to probe.
    """


def open_task(name: str, options: Mapping[str, Any]) -> Task:
  """The task of that name.

  Raises:
    InputError: there is none, or it does not take these options.
  """
  try:
    kind = TASKS.get(name)
    inspect.signature(kind).bind(**options)
  except (KeyError, TypeError) as error:
    raise InputError(f"task {name}: {error.args[0]}") from error
  return kind(**options)


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
