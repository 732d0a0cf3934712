"""Views of a source's images: drawn by seed and index, and by nothing else."""

import io

import numpy as np
import pytest
from PIL import Image

from align_jax.data import SOURCES
from align_jax.data.images import BadImage, ImageReader
from align_jax.data.views import Views
from align_jax.errors import InputError


def png(pixels: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


class Two:
  """Two examples; the image is dark but for one bright pixel."""

  def __init__(self, broken: bool = False):
    self.broken = broken

  def __len__(self) -> int:
    return 2

  def __getitem__(self, index: int):
    pixels = np.full((9, 9, 3), 20, np.uint8)
    pixels[3, 2 + index] = 250
    data = b"no picture" if self.broken else png(pixels)
    return {"id": f"two/{index}", "origin": f"two:{index}",
            "conversation": [], "images": [lambda: data]}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setitem(SOURCES._entries, "two", Two)


def read(views: Views, index: int) -> np.ndarray:
  return ImageReader(None, 9)(views[index]["images"][0])[0]


def place(pixels: np.ndarray) -> tuple[int, int]:
  return divmod(int(pixels[..., 0].argmax()), 9)


def test_the_first_view_is_the_image_itself() -> None:
  views = Views(dict(kind="two"), copies=3, shift=2, mirror=True)
  assert len(views) == 6 and views[1]["id"] == "two/1"
  np.testing.assert_array_equal(
      read(views, 1), ImageReader(None, 9)(Two()[1]["images"][0])[0])


def test_views_are_shifted_and_mirrored_within_bounds() -> None:
  views = Views(dict(kind="two"), copies=100, shift=2, mirror=True)
  places = {place(read(views, i)) for i in range(2, 200, 2)}
  rows, cols = zip(*places)
  assert set(rows) == {1, 2, 3, 4, 5}
  # The pixel is in column 2, mirrored in column 6.
  assert set(cols) == {0, 1, 2, 3, 4, 5, 6, 7, 8}
  assert read(views, 4).shape == (9, 9, 3)
  assert (read(views, 4) >= 20).all()  # the border is repeated, not black


def test_a_view_depends_on_seed_and_index_alone() -> None:
  same = [Views(dict(kind="two"), copies=9, shift=3, mirror=True, seed=s)
          for s in (1, 1, 2)]
  order = list(range(18))
  first = [read(same[0], i) for i in order]
  again = [read(same[1], i) for i in reversed(order)][::-1]
  other = [read(same[2], i) for i in order]
  assert all((a == b).all() for a, b in zip(first, again))
  assert any((a != b).any() for a, b in zip(first, other))
  assert len({same[0][i]["id"] for i in order}) == 18
  assert same[0][17]["origin"] == "two:1"


def test_bad_options_and_bad_images() -> None:
  with pytest.raises(InputError, match="copies is 0"):
    Views(dict(kind="two"), copies=0)
  views = Views(dict(kind="two", options=dict(broken=True)), copies=2)
  with pytest.raises(BadImage, match="broken"):
    read(views, 2)
