"""DEMON's choices: the one that an answer resembles most.

Source: DCDmllm/Cheetah, "DEMON Benchmark/scripts/evaluate.py", which is given
the texts of the choices in `Item.closed`. Its open answers are scored by
`rouge_l`.
"""

from align_jax.errors import InputError
from align_jax.evals.scorers.captions import sam_words
from align_jax.evals.scorers.protocol import Scorer
from align_jax.evals.tasks import Item

_IMAGES = ("image a", "image b", "image c", "image d")


class DemonChoice(Scorer):
  """Texts to choose from."""
  protocol = ("choice of a text: the one nearest to the answer by cosine of "
              "TF-IDF (scikit-learn's) after the VQA removal of punctuation, "
              "lower case; the answer itself where no word is left (DEMON)")

  def one(self, prediction: str, item: Item) -> float:
    if item.answer not in item.closed:
      raise InputError(f"{item.id}: the answer {item.answer!r} is none of the "
                       f"choices {list(item.closed)}")
    try:
      from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
      raise InputError("DEMON's choices are scored by scikit-learn; install "
                       "align-jax[demon]") from error
    said, true = sam_words(prediction), sam_words(item.answer)
    choices = [sam_words(choice) for choice in item.closed]
    try:
      table = TfidfVectorizer().fit_transform([said, *choices])
    except ValueError:  # words of a single letter alone are no words to it
      return said == true
    nearest = (table[1:] @ table[0].T).toarray().argmax()
    return choices[nearest] == true


class DemonImages(Scorer):
  """Images to choose from, by letter."""
  protocol = ("choice of an image: the answer begins with 'Image' and its "
              "letter, and no second image is named (DEMON)")

  def one(self, prediction: str, item: Item) -> float:
    said, true = sam_words(prediction), sam_words(item.answer)
    named = sum(image in said for image in _IMAGES)
    return said[:7] == true[:7] and named < 2
