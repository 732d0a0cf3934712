"""Several images at once: SAM's six test sets, and DEMON's tasks.

SAM: {folder}/{AESOP,VIST,DM800K,Conceptual,Animal,Vehicle}/annotations.json,
see data/image_lists.py; source of the layout: McCartney01/SAM: test.py. AESOP,
VIST and Conceptual are published with its code; the texts of DM800K, Animal
and Vehicle (NICO) come from their authors by mail, in the same form.

DEMON: {folder}/{core,full}/{core,full}.json, see data/demon.py; source of the
layout: DCDmllm/Cheetah. Open questions are scored by ROUGE-L, choices among
texts by TF-IDF, and choices among images by their letter, as DEMON does
(scorers/demon.py).
"""

from collections.abc import Callable

from align_jax.data.demon import Demon
from align_jax.data.example import PLACEHOLDER, Source
from align_jax.data.image_lists import ImageLists
from align_jax.data.tables import Row
from align_jax.errors import InputError
from align_jax.evals.decoding import SAM_BEAM
from align_jax.evals.readers.benchmark import Benchmark
from align_jax.registry import nearest

# How many images each question has; 0 where it is not said.
SETS = {"AESOP": 3, "VIST": 5, "DM800K": 0, "Conceptual": 5, "Animal": 0,
        "Vehicle": 0}

# Those of DEMON's tasks whose choices are images (its evaluate.py).
IMAGE_CHOICES = ("RecipeQA_VisualCloze", "RecipeQA_ImageCoherence",
                 "COMICS_Panel")


class _FromSource(Benchmark):
  """Questions of a source of examples, one turn each."""

  def take(self, source: Source, kind: str,
           choices: Callable[[int], tuple[str, ...]] | None = None) -> None:
    """Adds all its examples; `choices` gives what may be answered."""
    for index in range(len(source)):
      example = source[index]
      user, assistant = example["conversation"]
      asked = user["content"]
      lead = PLACEHOLDER * len(example["images"]) + "\n"
      row = Row({}, example["origin"])
      answer, closed = assistant["content"], ()
      if choices:
        closed = choices(index)
        if answer not in closed:
          raise row.fault(f"the answer {answer!r} is none of the choices "
                          f"{list(closed)}")
      self.add(row, example["id"], asked.removeprefix(lead), answer,
               example["images"], kind=kind, closed=closed)


class SamSet(_FromSource):
  """One of SAM's sets, all images first, searched and scored as SAM does.

  Attributes:
    dataset: its name.
  """
  scorer, max_new_tokens, beam = "sam", 256, SAM_BEAM

  def __init__(self, folder: str, dataset: str):
    if dataset not in SETS:
      raise InputError(f"dataset {dataset!r} is not one of "
                       f"{', '.join(SETS)}{nearest(dataset, SETS)}")
    self.dataset, self.name = dataset, f"sam_{dataset.lower()}"
    super().__init__(folder)

  def read(self) -> None:
    path = self.folder / self.dataset / "annotations.json"
    self.take(ImageLists(str(path), images=SETS[self.dataset]), self.dataset)


class DemonTask(_FromSource):
  """One task of DEMON.

  Attributes:
    part: "core" or "full".
    interleave: see data/demon.py.
  """
  name, scorer, max_new_tokens = "demon", "rouge_l", 256

  def __init__(self, folder: str, part: str = "core",
               interleave: bool = True):
    if part not in ("core", "full"):
      raise InputError(f"part {part!r} is not one of core, full"
                       f"{nearest(part, ('core', 'full'))}")
    self.part, self.interleave = part, interleave
    super().__init__(folder)

  def read(self) -> None:
    source = Demon(str(self.folder / self.part / f"{self.part}.json"),
                   interleave=self.interleave)
    if source.kind == "multi-choice":
      self.scorer = ("demon_images" if source.dataset in IMAGE_CHOICES else
                     "demon_choice")
    self.take(source, source.kind, source.choices
              if self.scorer == "demon_choice" else None)
