"""Linked images as a source of examples."""

from pathlib import Path
from typing import Any

from align_jax.data.example import PLACEHOLDER, Example
from align_jax.data.linked_images.build import decode, in_folder
from align_jax.errors import InputError

LAYOUTS = ("images_first", "interleaved")


class LinkedImages:
  """Sets of images with a question, built by `data build linked_images`.

  layout           the user's turn
  "images_first"   <image><image>... and the question, as SAM
  "interleaved"    Image 1: <image> Image 2: <image> ... and the question

  Attributes:
    manifest: what they were built with.
  """

  def __init__(self, path: str, layout: str = "images_first"):
    from array_record.python import array_record_data_source as records

    if layout not in LAYOUTS:
      raise InputError(f"linked_images: layout {layout!r} is none of "
                       f"{', '.join(LAYOUTS)}")
    self.path, self.layout = Path(path), layout
    self.manifest, files = in_folder(path)
    self._records = records.ArrayRecordDataSource(files)

  def __len__(self) -> int:
    return self.manifest["samples"]

  def __getitem__(self, index: int) -> Example:
    sample, images = self.sample(index)
    if self.layout == "images_first":
      seen = PLACEHOLDER * len(images)
    else:
      seen = " ".join(f"Image {i}: {PLACEHOLDER}"
                      for i in range(1, len(images) + 1))
    name = f"linked_images/{self.manifest['seed']}/{sample['id']}"
    return {"id": name, "origin": f"{self.path}:{sample['id']}",
            "conversation": [
                {"role": "user",
                 "content": f"{seen}\n{sample['instruction']}"},
                {"role": "assistant", "content": sample["output"]}],
            "images": list(images)}

  def sample(self, index: int) -> tuple[dict[str, Any], list[bytes]]:
    """The published record of a sample, with its kind and facts; PNGs."""
    return decode(self._records.__getitem__(index))
