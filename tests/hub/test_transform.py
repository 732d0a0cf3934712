"""Transforms against einops-free numpy, whole and in slices."""

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from align_jax.hub.fill import load_flat
from align_jax.hub.keymaps import Family
from align_jax.hub.match import faults_of
from align_jax.hub.transform import Transform
from align_jax.hub.write import foreign_tensors

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


def test_only_one_axis_is_cut() -> None:
  with pytest.raises(ValueError, match="one foreign axis may be cut"):
    Transform("a@0 b@1 -> a b")


class _Fused:
  """A checkpoint of two layers whose q, k and v are one tensor."""

  def __init__(self, rows: int = 16):
    rng = np.random.default_rng(0)
    self.tensors = {f"{n}.qkv": rng.normal(size=(rows, 5)).astype(np.float32)
                    for n in range(2)}
    self.fetched = 0

  def keys(self) -> Any:
    return self.tensors.keys()

  def shape(self, key: str) -> tuple[int, ...]:
    return self.tensors[key].shape

  def dtype(self, key: str) -> np.dtype:
    return self.tensors[key].dtype

  def origin(self, key: str) -> str:
    return f"file:{key}"

  def read(self, key: str, index: tuple[slice, ...]) -> np.ndarray:
    found = self.tensors[key][index]
    self.fetched += found.size
    return found


def _fused(v: str = "(g k)@-1 d -> d g k") -> Family:
  rules = {"layers/q_dhk": ("{n}.qkv", "(h k)@0 d -> d h k"),
           "layers/k_dgk": ("{n}.qkv", "(g k)@-2 d -> d g k"),
           "layers/v_dgk": ("{n}.qkv", v)}
  return Family("fused", rules, dict, dict)


def _fused_shapes(sharded: bool) -> dict[str, jax.ShapeDtypeStruct]:
  mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
  where = NamedSharding(mesh, P(None, None, "x")) if sharded else None
  return {f"layers/{name}": jax.ShapeDtypeStruct(
      (2, 5, heads, 2), np.float32, sharding=where)
          for name, heads in (("q_dhk", 4), ("k_dgk", 2), ("v_dgk", 2))}


@pytest.mark.parametrize("sharded", [False, True])
def test_pieces_of_a_fused_tensor(sharded: bool) -> None:
  file, shapes = _Fused(), _fused_shapes(sharded)
  names = {key: key for key in file.keys()}
  loaded, origins = load_flat(file, names, _fused(), shapes, "file")
  assert file.fetched == 2 * 16 * 5  # each byte once, for all devices
  assert set(origins.values()) == {"file:{0..1}.qkv"}
  for n in range(2):
    fused = file.tensors[f"{n}.qkv"]
    for name, rows in (("q_dhk", slice(0, 8)), ("k_dgk", slice(8, 12)),
                       ("v_dgk", slice(12, 16))):
      np.testing.assert_array_equal(
          loaded[f"layers/{name}"][n],
          fused[rows].reshape(-1, 2, 5).transpose(2, 0, 1))
  written = foreign_tensors(_fused(), loaded)
  assert [(t.key, t.shape) for t in written] == [
      ("0.qkv", (16, 5)), ("1.qkv", (16, 5))]
  for tensor in written:
    np.testing.assert_array_equal(tensor.make(), file.tensors[tensor.key])


def test_a_fused_tensor_of_another_size_is_refused() -> None:
  file = _Fused(rows=18)
  faults = faults_of(file, {k: k for k in file.keys()}, _fused(),
                     _fused_shapes(False))
  assert ("'{0..1}.qkv' has shape [18, 5], our layers/q_dhk needs [16, 5]"
          in faults)


def test_pieces_that_leave_a_gap_are_refused() -> None:
  file = _Fused()
  with pytest.raises(ValueError, match="pieces of '{n}.qkv' do not fill it"):
    load_flat(file, {k: k for k in file.keys()},
              _fused("(g k)@-2 d -> d g k"), _fused_shapes(False), "file")
