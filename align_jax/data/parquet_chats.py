"""Conversations in parquet files on the Hugging Face hub.

  LlavaNext      lmms-lab/LLaVA-NeXT-Data (LLaVA-NeXT-779K): id, image,
                 conversations [{"from", "value"}], data_source
  Mantis         TIGER-Lab/Mantis-Instruct: id, images [...],
                 conversation [{"role", "content"}], source
  BigDocs        ServiceNow/BigDocs-7.5M: sample_id, image, query, annotations

Sources of the layouts: the data sets' cards; LLaVA-VL/LLaVA-NeXT:
llava/train/train.py (LazySupervisedDataset) for the turns; TIGER-AI-Lab/
Mantis: mantis/train/data.py and mantis/data/README.md for `images` and
`conversation`; public code that reads BigDocs for `sample_id` and `image`
(its `query` and `annotations` are as BigDocs-Bench's card has them).

An image column holds a struct {bytes, path}. BigDocs' sets whose images may
not be passed on name them alone, by a struct without bytes or, where there is
no column `image`, by `img_id` (as public code reads them; the card's own list
of columns could not be seen): they want `image_root`.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from align_jax.data.below import below, folder
from align_jax.data.example import PLACEHOLDER, BadSample, Example, ImageRef
from align_jax.data.llava import turns
from align_jax.data.parquet import Parquet, find


class _ParquetSource:
  """Rows of parquet files.

  Attributes:
    image_root: where images lie that the files only name; None if nowhere.
  """
  columns: Sequence[str] = ()

  def __init__(self, path: str, pattern: str = "**/train-*.parquet",
               image_root: str = ""):
    root = Path(path).expanduser()
    self.table = Parquet([root] if root.is_file() else find(root, pattern))
    self.image_root = folder(image_root) if image_root else None

  def __len__(self) -> int:
    return len(self.table)

  def _image(self, index: int, value: Any, read: Any,
             origin: str) -> ImageRef:
    """A reference to an image column's value, its bytes not held."""
    if isinstance(value, dict) and value.get("bytes") is None:
      if self.image_root is None:
        raise BadSample(origin, f"the image {value.get('path')!r} is only "
                        "named; give image_root")
      return below(self.image_root, value.get("path"), origin)
    return partial(read, index)


class LlavaNext(_ParquetSource):
  """LLaVA-NeXT-779K; text-only rows have a null image."""

  def __getitem__(self, index: int) -> Example:
    row = self.table.row(index, ["id", "image", "conversations"])
    value = row.fields["image"]
    images = [] if value is None else [self._image(
        index, value, partial(_column, self.table, "image"), row.origin)]
    messages = turns(row.fields, "conversations", row.origin)
    return {"id": str(row.fields["id"]), "origin": row.origin,
            "conversation": messages, "images": images}


class Mantis(_ParquetSource):
  """Mantis-Instruct: several images, in the order of their placeholders.

  Conversations without placeholders have their images first.
  """

  def __getitem__(self, index: int) -> Example:
    row = self.table.row(index, ["id", "images", "conversation"])
    values = row.fields["images"] or []
    images = [self._image(index, v, partial(_listed, self.table, n),
                          row.origin) for n, v in enumerate(values)]
    messages = turns(row.fields, "conversation", row.origin, "role",
                     "content")
    written = sum(m["content"].count(PLACEHOLDER) for m in messages)
    if images and not written:
      messages[0]["content"] = (
          PLACEHOLDER * len(images) + "\n" + messages[0]["content"])
    elif written != len(images):
      raise BadSample(row.origin, f"{written} {PLACEHOLDER} for "
                      f"{len(images)} images")
    return {"id": str(row.fields["id"]), "origin": row.origin,
            "conversation": messages, "images": images}


class BigDocs(_ParquetSource):
  """BigDocs-7.5M: queries about one document, each with its annotation."""

  def __getitem__(self, index: int) -> Example:
    # Subsets differ in their columns.
    shown = "image" if self.table.has(index, "image") or not self.table.has(
        index, "img_id") else "img_id"
    row = self.table.row(index, ["sample_id", shown, "query", "annotations"])
    asked, told = (_texts(row.fields[name], name, row.origin)
                   for name in ("query", "annotations"))
    if len(asked) != len(told):
      raise BadSample(row.origin, f"{len(asked)} queries for {len(told)} "
                      "annotations")
    value = row.fields[shown]
    if value is None:
      raise BadSample(row.origin, "there is no image")
    if shown == "img_id":
      value = {"path": value}
    image = self._image(index, value, partial(_column, self.table, "image"),
                        row.origin)
    messages = []
    for number, (query, annotation) in enumerate(zip(asked, told)):
      lead = "" if number else PLACEHOLDER + "\n"
      messages += [{"role": "user", "content": lead + query},
                   {"role": "assistant", "content": annotation}]
    return {"id": str(row.fields["sample_id"]), "origin": row.origin,
            "conversation": messages, "images": [image]}


def _column(table: Parquet, column: str, index: int) -> bytes:
  return table.image(index, column)


def _listed(table: Parquet, number: int, index: int) -> bytes:
  return table.row(index, ["images"]).fields["images"][number]["bytes"]


def _texts(value: Any, name: str, origin: str) -> list[str]:
  """A text or a list of them, as a list."""
  texts = [value] if isinstance(value, str) else value
  if not isinstance(texts, list) or not texts or not all(
      isinstance(t, str) and t.strip() for t in texts):
    raise BadSample(origin, f"{name!r} is {value!r:.60}, not a text or a list "
                    "of texts")
  return [t.strip() for t in texts]
