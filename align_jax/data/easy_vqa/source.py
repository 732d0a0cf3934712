"""easy-VQA as a source of examples."""

import contextlib
import importlib.util
import logging
import os
import random
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from align_jax.data.example import PLACEHOLDER, Example
from align_jax.errors import InputError
from align_jax.registry import nearest

FORMS = ("turns", "questions", "captions")
SPLITS = ("train", "test")


def default_data_dir() -> Path:
  """Where data sets are kept when no folder is named."""
  cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(cache) / "align_jax" / "datasets"


def prepare(data_dir: str | Path = "") -> Any:
  """The tfds builder with its files in place, written on first use.

  Files are written elsewhere and moved when complete, so that processes
  which start together do not meet.

  Raises:
    InputError: the files must be written and easy-vqa is not installed.
  """
  from align_jax.data.easy_vqa import easy_vqa_dataset_builder
  folder = Path(data_dir or default_data_dir()).expanduser()
  make = partial(easy_vqa_dataset_builder.Builder, file_format="array_record")
  builder = make(data_dir=folder)
  target = Path(builder.data_dir)
  if (target / "dataset_info.json").exists():
    return builder
  if importlib.util.find_spec("easy_vqa") is None:
    raise InputError(easy_vqa_dataset_builder.MISSING)
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
    fresh = make(data_dir=scratch)
    with contextlib.redirect_stdout(sys.stderr):  # tfds prints to stdout
      fresh.download_and_prepare()
    try:
      os.rename(fresh.data_dir, target)
    except OSError:
      if not (target / "dataset_info.json").exists():
        shutil.rmtree(target)  # the rest of a process that was killed
        os.rename(fresh.data_dir, target)
  return make(data_dir=folder)


class EasyVQA:
  """Questions on one coloured shape an image.

  form         a sample is                                        length (train)
  "turns"      an image with all its questions, in seeded order            4,000
  "questions"  an image with one of them                                  38,575
  "captions"   an image with "a blue circle"                               3,578

  `split` is "train" or "test", or a part of one as tfds writes it:
  "train[:90%]".

  Attributes:
    split: the whole split, which names its samples.
    images: what is known of each image of the split, by image_id; see
      `facts`.
    skipped: how many images have no caption, since their questions leave
      shape or colour open (form "captions" only).
  """

  def __init__(self, split: str = "train", form: str = "turns",
               data_dir: str = "", seed: int = 0):
    whole = split.partition("[")[0]
    for given, allowed in ((whole, SPLITS), (form, FORMS)):
      if given not in allowed:
        raise InputError(f"easy_vqa: {given!r} is not one of "
                         f"{', '.join(allowed)}{nearest(given, allowed)}")
    import tensorflow_datasets as tfds
    self.split, self.form, self.seed = whole, form, seed
    self._records = prepare(data_dir).as_data_source(
        split, decoders={"image": tfds.decode.SkipDecoding()})
    # Records lie in an order of tfds' own; ids and indices follow image_id.
    # All but the images is small, and stays in memory.
    self.images = sorted((self._read(i) for i in range(len(self._records))),
                         key=lambda facts: facts["image_id"])
    self.skipped = 0
    if form == "questions":
      self._index = [(f, q) for f in self.images
                     for q in range(len(f["questions"]))]
    elif form == "captions":
      kept = [f for f in self.images if f["shape"] and f["color"]]
      self.skipped = len(self.images) - len(kept)
      self._index = [(f, 0) for f in kept]
      logging.getLogger(__name__).info(
          "easy_vqa/%s: %d of %d images have no caption, since their "
          "questions leave shape or colour open", split, self.skipped,
          len(self.images))
    else:
      self._index = [(f, 0) for f in self.images]

  def __len__(self) -> int:
    return len(self._index)

  def __getitem__(self, index: int) -> Example:
    facts, question = self._index[index]
    name = f"easy_vqa/{self.split}/{facts['image_id']}"
    if self.form == "captions":
      turns = [("", f"a {facts['color']} {facts['shape']}")]
    else:
      turns = list(zip(facts["questions"], facts["answers"]))
    if self.form == "questions":
      name, turns = f"{name}/{question}", [turns[question]]
    elif self.form == "turns":
      random.Random(f"{self.seed}/{name}").shuffle(turns)
    conversation = []
    for number, (asked, answer) in enumerate(turns):
      lead = "" if number else PLACEHOLDER + ("\n" if asked else "")
      conversation += [{"role": "user", "content": lead + asked},
                       {"role": "assistant", "content": answer}]
    return {"id": name, "origin": name, "conversation": conversation,
            "images": [partial(self.image, facts["record"])]}

  def facts(self, index: int) -> dict[str, Any]:
    """The image behind example `index`, in words.

    Gives {image_id, file_name, shape, color ("" where unknown), questions,
    answers, record (for `image`)}.
    """
    return self._index[index][0]

  def image(self, record: int) -> bytes:
    """The PNG file of one record, as bytes."""
    return self._records[record]["image"]

  def _read(self, record: int) -> dict[str, Any]:
    row = self._records[record]
    return {
        "record": record,
        "image_id": int(row["image_id"]),
        "file_name": row["file_name"].decode(),
        "questions": [q.decode() for q in row["questions"]],
        "answers": [a.decode() for a in row["answers"]],
        "shape": row["shape"].decode(),
        "color": row["color"].decode(),
    }
