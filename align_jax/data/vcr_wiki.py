"""VCR-wiki's training sets: covered words in pictures.

  **/train-*.parquet, columns question_id, image, stacked_image,
  only_it_image, only_it_image_small, caption, crossed_text

Source of the layout: vcr-org/VCR-wiki-en-easy and -hard on the Hugging Face
hub as tianyu-z/VCR (src/evaluation) and lmms-eval
(lmms_eval/tasks/vcr_wiki/utils.py) read it: `stacked_image` is the picture
above the text with covered words, `crossed_text` the list of what is covered.
That the answer is this list, with commas between, is how AlignVLM's exact
match asks for it; what it trained on is not stated.
"""

from functools import partial
from pathlib import Path

from align_jax.data.example import PLACEHOLDER, BadSample, Example
from align_jax.data.parquet import Parquet, find

# Of lmms-eval's task file, vcr_wiki_en_easy.yaml.
ASK = ("What is the covered texts in the image? Please restore the covered "
       "texts without outputting the explanations.")


class VcrWiki:
  """The folder of one difficulty."""

  def __init__(self, path: str, pattern: str = "**/train-*.parquet"):
    self.table = Parquet(find(Path(path).expanduser(), pattern))

  def __len__(self) -> int:
    return len(self.table)

  def __getitem__(self, index: int) -> Example:
    """A picture with what its text hides.

    Raises:
      BadSample: nothing is covered, or there is no picture.
    """
    row = self.table.row(index, ["question_id", "stacked_image",
                                 "crossed_text"])
    covered = row.fields["crossed_text"]
    if not isinstance(covered, list) or not covered or not all(
        isinstance(text, str) and text.strip() for text in covered):
      raise BadSample(row.origin, f"\"crossed_text\" is {covered!r:.60}, not a "
                      "list of texts")
    if row.fields["stacked_image"] is None:
      raise BadSample(row.origin, "there is no image")
    return {"id": str(row.fields["question_id"]), "origin": row.origin,
            "conversation": [
                {"role": "user", "content": f"{PLACEHOLDER}\n{ASK}"},
                {"role": "assistant",
                 "content": ", ".join(text.strip() for text in covered)}],
            "images": [partial(self.table.image, index, "stacked_image")]}
