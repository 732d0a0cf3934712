"""Transforms against einops-free numpy, whole and in slices."""

import numpy as np
import pytest

from align_jax.hub.transform import Transform

CASES = {
    "v d -> v d": ((5, 4), lambda w: w),
    "(h k) d -> d h k": ((4, 3, 2), lambda w: w.reshape(3, 2, 4).transpose(
        2, 0, 1)),
    "d (h k) -> h k d": ((3, 2, 4), lambda w: w.reshape(4, 3, 2).transpose(
        1, 2, 0)),
    "c a i j -> i j a c": ((2, 3, 4, 5), lambda w: w.transpose(2, 3, 1, 0)),
    # llama.cpp's order of q and k
    "(h j 2) d -> d h (2 j)": ((4, 3, 6), lambda w: w.reshape(
        3, 3, 2, 4).swapaxes(1, 2).reshape(3, 6, 4).transpose(2, 0, 1)),
    "1 p c -> p c": ((3, 4), lambda w: w[0]),
    "": ((), lambda w: w),
}


@pytest.mark.parametrize("text", CASES)
def test_whole_there_and_back(text: str) -> None:
  shape, want = CASES[text]
  transform = Transform(text)
  foreign = np.arange(np.prod(shape), dtype=np.float32).reshape(
      transform.foreign_shape(shape))
  got = transform.read(lambda cut: foreign[cut], shape,
                       (slice(None),) * len(shape))
  np.testing.assert_array_equal(got, want(foreign))
  np.testing.assert_array_equal(transform.write(got), foreign)


@pytest.mark.parametrize("text", CASES)
def test_slices_equal_slices_of_the_whole(text: str) -> None:
  shape, want = CASES[text]
  transform = Transform(text)
  foreign = np.arange(np.prod(shape)).reshape(transform.foreign_shape(shape))
  for axis, size in enumerate(shape):
    for cut in (slice(0, size // 2), slice(size // 2, size)):
      index = tuple(cut if i == axis else slice(None)
                    for i in range(len(shape)))
      np.testing.assert_array_equal(
          transform.read(lambda c: foreign[c], shape, index),
          want(foreign)[index])


def test_a_slice_of_heads_fetches_those_heads_alone() -> None:
  fetched = []
  foreign = np.zeros((12, 8))

  def fetch(cut: tuple) -> np.ndarray:
    fetched.append(cut)
    return foreign[cut]

  Transform("(h k) d -> d h k").read(
      fetch, (8, 6, 2), (slice(4, 8), slice(2, 4), slice(None)))
  assert fetched == [(slice(4, 8), slice(4, 8))]


def test_sides_with_other_axes_are_refused() -> None:
  with pytest.raises(ValueError, match="other axes left and right"):
    Transform("(h k) d -> d h")
