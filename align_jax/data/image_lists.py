"""Records of several images with one instruction, as SAM publishes them.

  {"id": 3, "img_list": ["3_0.jpg", "3_1.jpg"],
   "instruction": "What do these share?", "output": "An acorn."}

Source of the layout: McCartney01/SAM, test.py (class MDataset): a list of
such records in `annotations.json`, images relative to its folder, their order
kept. All images come before the text, which may name them as "{image#1}":
that stays as it is, as in the published evaluation.
"""

from align_jax.data.below import below
from align_jax.data.example import PLACEHOLDER, BadSample, Example
from align_jax.data.json_source import JsonSource
from align_jax.registry import nearest


class ImageLists(JsonSource):
  """SAM's records.

  Attributes:
    images: how many a record must have; 0 leaves it open.
  """

  def __init__(self, path: str, image_root: str = "", images: int = 0):
    super().__init__(path, image_root)
    self.images = images

  def __getitem__(self, index: int) -> Example:
    """One record.

    Raises:
      BadSample: a field is missing or of another kind, or the number of
        images is not the one asked for.
    """
    record, origin, line = self.record(index)
    names = record.get("img_list")
    if not isinstance(names, list) or not names:
      raise BadSample(origin, "no \"img_list\" with paths"
                      + nearest("img_list", record))
    if self.images and len(names) != self.images:
      raise BadSample(origin, f"{len(names)} images, not {self.images}")
    texts = []
    for field in ("instruction", "output"):
      text = record.get(field)
      if not isinstance(text, str) or not text.strip():
        raise BadSample(origin, f"{field!r} is {text!r:.60}, not a text"
                        + ("" if field in record else nearest(field, record)))
      texts.append(text.strip())
    return {
        "id": str(record.get("id", f"{self.path.stem}:{line}")),
        "origin": origin,
        "conversation": [
            {"role": "user",
             "content": PLACEHOLDER * len(names) + "\n" + texts[0]},
            {"role": "assistant", "content": texts[1]}],
        "images": [below(self.image_root, name, origin) for name in names],
    }
