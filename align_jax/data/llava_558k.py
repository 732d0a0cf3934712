"""LLaVA-558K, the captions that LLaVA-1.5's connector is trained on.

Source of the layout: haotian-liu/LLaVA: docs/Data.md and
scripts/v1_5/pretrain.sh; liuhaotian/LLaVA-Pretrain on the Hugging Face hub
has blip_laion_cc_sbu_558k.json and images.zip, unpacked into `images` or into
the folder itself. The records are LLaVA's, see llava.py; its loader keeps of
a pretraining record the image and the caption alone (version "plain"), which
the template "plain" with `plain=True` does here.
"""

from pathlib import Path

from align_jax.data.example import PLACEHOLDER, BadSample, Example
from align_jax.data.llava import Llava

FILE = "blip_laion_cc_sbu_558k.json"


class Llava558K(Llava):
  """The published folder.

  Attributes:
    plain: leave out what the human asks beside the image, as LLaVA does.
  """

  def __init__(self, root: str, plain: bool = True):
    home = Path(root).expanduser()
    images = home / "images"
    super().__init__(str(home / FILE),
                     str(images if images.is_dir() else home))
    self.plain = plain

  def __getitem__(self, index: int) -> Example:
    """A record; see `Llava`.

    Raises:
      BadSample: also where it is not one question with one image.
    """
    example = super().__getitem__(index)
    turns = example["conversation"]
    if [t["role"] for t in turns] != ["user", "assistant"] or (
        PLACEHOLDER not in turns[0]["content"]):
      raise BadSample(example["origin"], "not one question about an image and "
                      "one answer")
    if self.plain:
      turns[0]["content"] = PLACEHOLDER
    return example
