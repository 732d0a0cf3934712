"""Stanford Dogs, four breeds to choose from.

  test_list.mat: file_list (cells such as
      "n02085620-Chihuahua/n02085620_2650.jpg"), annotation_list, labels
  Images/n02085620-Chihuahua/n02085620_2650.jpg

Source of the layout: vision.stanford.edu/aditya86/ImageNetDogs (lists.tar,
images.tar), as tensorflow/datasets reads it:
tensorflow_datasets/image_classification/stanford_dogs.py. SEA reports a
four-way choice and does not say how the other three are drawn; here they are
drawn among the other breeds by the picture's name, and so is their order.
"""

import random

from align_jax.data.tables import Row
from align_jax.errors import InputError
from align_jax.evals.readers.benchmark import (
    LETTER,
    LETTERS,
    Benchmark,
    options_text,
)

ASK = "Which breed is this dog?"


class StanfordDogs(Benchmark):
  """The test list."""
  name, scorer, max_new_tokens = "stanford_dogs", "infer", 16
  answers = ("A", "B", "C", "D")

  def read(self) -> None:
    from scipy.io import loadmat
    path = self.folder / "test_list.mat"
    try:
      lists = loadmat(path)
    except (OSError, ValueError) as error:
      raise InputError(f"{path}: no .mat file: {error}") from error
    row = Row(lists, str(path))
    names = [str(cell.item()) for cell in row.get("file_list").ravel()]
    breeds = sorted({breed(name, row) for name in names})
    if len(breeds) < 4:
      raise row.fault(f"{len(breeds)} breeds, and four are shown")
    for name in names:
      right = breed(name, row)
      rng = random.Random(f"dogs/{name}")
      options = [right, *rng.sample([b for b in breeds if b != right], 3)]
      rng.shuffle(options)
      self.add(row, name, f"{ASK}\n{options_text(options)}{LETTER}",
               LETTERS[options.index(right)],
               [self.path(row, "Images", name)], kind=right,
               options=tuple(options))


def breed(name: str, row: Row) -> str:
  """"n02085620-Chihuahua/..." -> "Chihuahua".

  Raises:
    InputError: the path is not of that form.
  """
  folder, slash, _ = name.partition("/")
  synset, dash, words = folder.partition("-")
  if not slash or not dash or not words or not synset.startswith("n"):
    raise row.fault(f"file_list has {name!r}, not nXXXXXXXX-Breed/file.jpg")
  return words.replace("_", " ")
