"""COCO Captions, val2014 or val2017.

  annotations/captions_val2014.json: {"images": [{"id": 391895, "file_name":
      "COCO_val2014_000000391895.jpg", ...}, ...], "annotations":
      [{"image_id": 391895, "id": 770337, "caption": "..."}, ...]}
  val2014/COCO_val2014_000000391895.jpg

Source of the layout: cocodataset.org/#format-data ("4. Image captioning") and
tylin/coco-caption. SEA does not say which images it captions.
"""

from collections import defaultdict

from align_jax.data.tables import json_rows
from align_jax.errors import InputError
from align_jax.evals.readers.benchmark import Benchmark

# lmms-eval's task file, lmms_eval/tasks/coco_cap.
ASK = "Provide a one-sentence caption for the provided image."


class CocoCaptions(Benchmark):
  """Five references an image, scored by CIDEr-D over COCO's tokens."""
  name, scorer, max_new_tokens = "coco_captions", "coco", 32

  def __init__(self, folder: str, split: str = "val2014"):
    if split not in ("val2014", "val2017"):
      raise InputError(f"split {split!r} is not one of val2014, val2017")
    self.split = split
    super().__init__(folder)

  def read(self) -> None:
    path = self.folder / "annotations" / f"captions_{self.split}.json"
    said: dict[int, list[str]] = defaultdict(list)
    for row in json_rows(path, "annotations"):
      said[row.get("image_id", int)].append(row.text("caption"))
    for row in json_rows(path, "images"):
      number = row.get("id", int)
      if number not in said:
        raise row.fault(f"no annotation has the image_id {number}")
      self.add(row, number, ASK, said[number][0],
               [self.path(row, self.split, row.text("file_name"))],
               answers=tuple(said[number]))
