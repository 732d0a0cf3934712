"""Pictures are readable images, whatever the words and the grid."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from align_jax.inspect import pictures

IMAGE = np.full((16, 16, 3), 200, np.uint8)
IMAGE[4:12, 4:12] = (220, 30, 30)
HARD = ["$x_1$", "a\\b", "␣", "antidisestablishmentarianism", "<|im_end|>",
        "", "日本", "é"]


def _open(png: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int)


@pytest.mark.parametrize("side", [1, 2, 4, 9])
def test_words_over_patches(side: int):
  words = [[HARD[(i + j) % len(HARD)] for j in range(5)]
           for i in range(side * side)]
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    png = pictures.words_over_patches(
        IMAGE, words, np.linspace(0, 1, side * side), "title $", "note",
        [("a question?", "an answer", True), ("q" * 99, "a" * 99, False)] * 9)
  picture = _open(png)
  assert picture.shape[0] >= 800 and picture.shape[1] > picture.shape[0]
  assert (picture.std(axis=(0, 1)) > 10).all()


def test_a_long_word_stays_in_its_cell():
  wide = pictures._ems("component", "bold")
  assert 5 < wide < 8 and wide < pictures._ems("components", "bold")
  blank, word = (_open(pictures.words_over_patches(
      IMAGE, [[text]] * 16, np.ones(16))) for text in ("", "component"))
  # Between two columns of cells no ink is added: the picture's rightmost
  # 4 % and the gaps look as they did.
  changed = np.flatnonzero((blank != word).any(axis=(0, 2)))
  gaps = np.flatnonzero(np.diff(changed) > 8)
  assert len(gaps) == 3


def test_a_surer_cell_is_darker():
  png = pictures.words_over_patches(
      IMAGE, [[""]] * 4, np.array([0.1, 0.2, 0.3, 0.9]))
  picture = _open(png)
  grid = picture[:, picture.shape[1] // 2 - 20:]
  corner = lambda y, x: grid[int(y * grid.shape[0]), int(x * grid.shape[1])]
  assert corner(0.25, 0.15).sum() > corner(0.95, 0.95).sum() + 100


def test_no_grid_is_an_error():
  assert pictures.grid_of(5) is None and pictures.grid_of(9) == (3, 3)
  with pytest.raises(ValueError, match="5 tokens form no square grid"):
    pictures.words_over_patches(IMAGE, [["a"]] * 5, np.ones(5))


@pytest.mark.parametrize("scale", [1.0, 30.0, 0.0])
def test_norms(scale: float):
  rng = np.random.default_rng(0)
  png = pictures.norms(scale * rng.random(50), 3 + rng.random(200))
  assert _open(png).std() > 5


def test_equal_norms():
  assert pictures.norms(np.ones(3), np.ones(4))


def test_thumbnail_is_never_smaller():
  small = Image.open(io.BytesIO(pictures.thumbnail(IMAGE, 64)))
  large = Image.open(io.BytesIO(pictures.thumbnail(IMAGE, 8)))
  assert small.size == (64, 64) and large.size == (16, 16)
