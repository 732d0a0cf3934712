"""Meshes over slices, meshes by accelerator, and those of all configs."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from align_jax.config import MeshConfig, config_names, load_config
from align_jax.errors import InputError
from align_jax.parallel.layout import AXES, Layout
from align_jax.parallel.mesh import _arranged, over_slices
from align_jax.parallel.presets import ACCELERATORS, mesh_for
from align_jax.plan.check import head_faults
from tests.test_vlm import ALONE, MIXED


@dataclasses.dataclass(frozen=True)
class FakeTpu:
  id: int
  slice_index: int
  coords: tuple[int, int, int]
  platform: str = "tpu"
  device_kind: str = "TPU v5 lite"
  core_on_chip: int = 0
  process_index: int = 0


def slices_of(count: int, side: int = 2) -> list[FakeTpu]:
  return [FakeTpu(s * side * side + y * side + x, s, (x, y, 0))
          for s in range(count) for y in range(side) for x in range(side)]


@pytest.mark.parametrize("shape,slices,want", [
    ((1, 4, 8, 1, 1), 4, (1, 4, 1, 1, 1)),
    ((2, 4, 8, 1, 1), 4, (2, 2, 1, 1, 1)),
    ((1, 1, 32, 2, 1), 4, (1, 1, 4, 1, 1)),
    ((1, 6, 4, 1, 1), 4, (1, 2, 2, 1, 1)),
])
def test_the_outer_axes_go_over_slices(shape, slices, want):
  assert over_slices(shape, slices) == want


def test_activations_never_leave_their_slice():
  with pytest.raises(ValueError, match="stay inside a slice"):
    over_slices((1, 1, 2, 4, 2), 4)


@pytest.mark.parametrize("shape", [(1, 2, 4, 1, 1), (2, 1, 2, 2, 1),
                                   (1, 2, 1, 2, 2)])
def test_each_slice_is_one_part_of_the_mesh(shape):
  mesh = _arranged(slices_of(2), shape)
  assert mesh.shape == shape
  assert len({d.id for d in mesh.flat}) == 8
  halves = np.reshape(mesh, (2, 4))
  for half in halves:
    assert len({d.slice_index for d in half}) == 1


def test_neighbours_share_the_innermost_axes():
  mesh = _arranged(slices_of(1, side=4), (1, 1, 4, 4, 1))
  for group in mesh.reshape(4, 4):  # along tensor
    places = np.array([d.coords for d in group])
    assert (np.ptp(places, axis=0) == 0).sum() >= 1


@pytest.mark.parametrize("name", ACCELERATORS)
def test_a_preset_takes_every_chip(name):
  found = ACCELERATORS[name]
  if found.topology:
    sides = found.topology.split(":")[1].split("x")
    assert math.prod(map(int, sides)) == found.chips
  for slices in (1, 4):
    mesh = dataclasses.asdict(mesh_for(name, slices))
    assert math.prod(mesh.values()) == found.chips * slices
    assert mesh["data"] % slices == 0


def test_an_unknown_accelerator_is_answered_with_the_nearest():
  with pytest.raises(InputError, match="did you mean 'v5e-256'"):
    mesh_for("v5e-265")


def test_the_layouts_of_all_configs_are_tested():
  """Which axes have more than one device; sizes do not matter."""
  used = lambda mesh: frozenset(
      axis for axis in AXES
      if mesh.get(axis, getattr(MeshConfig(), axis)) not in (1, -1))
  tested = {used({"data": 1} | shape) for shape in ALONE + MIXED}
  for name in config_names():
    mesh = dict(load_config(name).get("mesh", {}))
    axes = used(mesh)
    assert not axes or axes in tested or axes - {"replica", "data"} in {
        t - {"replica", "data"} for t in tested}, (name, sorted(axes))


def test_heads_that_tensor_does_not_divide_are_named():
  parts = SimpleNamespace(model=SimpleNamespace(decoder=SimpleNamespace(
      config=SimpleNamespace(heads=24, kv_heads=8))))
  assert head_faults(parts, 8) == head_faults(parts, 4) == []
  assert "do not divide the decoder's 24 heads" in head_faults(parts, 16)[0]
  assert "8 key-value heads do not divide" in head_faults(parts, 12)[0]


def test_without_a_mesh_the_platform_is_what_is_at_hand():
  assert Layout().platform == "cpu"
  abstract = jax.sharding.AbstractMesh((1,) * 5, AXES)
  assert Layout(abstract).platform == "cpu"
