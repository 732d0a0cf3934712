"""The device mesh of a run."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh

from align_jax.config import MeshConfig
from align_jax.parallel.layout import AXES, ROWS


def mesh_shape(config: MeshConfig, devices: int) -> tuple[int, ...]:
  """Devices along replica, data, fsdp, tensor, context; -1 is filled in.

  Raises:
    ValueError: the axes do not multiply to `devices`.
  """
  shape = [getattr(config, axis) for axis in AXES]
  named = dict(zip(AXES, shape))
  if shape.count(-1) > 1 or any(s < 1 and s != -1 for s in shape):
    raise ValueError(
        f"mesh {named}: each axis is at least 1, and one of them may be -1")
  fixed = math.prod(s for s in shape if s != -1)
  if -1 in shape:
    shape[shape.index(-1)] = max(devices // fixed, 1)
  if math.prod(shape) != devices:
    raise ValueError(
        f"mesh {named} needs a multiple of {fixed} devices, there are "
        f"{devices}" if -1 in named.values() else
        f"mesh {named} needs {fixed} devices, there are {devices}")
  return tuple(shape)


def make_mesh(config: MeshConfig,
              devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh over the given devices (default: all) with automatic axes.

  Neighbouring devices share the innermost axes (tensor, context), whose
  traffic is the heaviest. Slices of TPUs are joined by a network far slower
  than their own: replica, then data, then fsdp go over slices (see
  `over_slices`), the rest stays inside one. Where every axis has its size and
  the machine has more devices, the first are taken; not with several
  processes, for some would be left without a device.

  Raises:
    ValueError: the axes do not multiply to the number of devices, or do not
      divide over the slices.
  """
  sizes = [getattr(config, axis) for axis in AXES]
  if devices is None:
    devices = jax.devices()
    if min(sizes) > 0 and jax.process_count() == 1:
      devices = devices[:math.prod(sizes)]
  devices = list(devices)
  shape = mesh_shape(config, len(devices))
  return Mesh(_arranged(devices, shape), AXES,
              axis_types=(AxisType.Auto,) * len(AXES))


def over_slices(shape: Sequence[int], slices: int) -> tuple[int, ...]:
  """How much of each axis goes over slices; replica, data, fsdp in turn.

  A gradient is summed over replica and data once a step, and weights are
  gathered over fsdp once a layer; activations never leave their slice.

  Raises:
    ValueError: these three axes cannot make up the slices.
  """
  outer, left = [], slices
  for axis, size in zip(AXES, shape):
    part = math.gcd(size, left) if axis in ROWS else 1
    outer.append(part)
    left //= part
  if left > 1:
    named = dict(zip(AXES, shape))
    raise ValueError(
        f"mesh {named} on {slices} slices: replica x data x fsdp must be a "
        f"multiple of {slices}, since tensor and context stay inside a slice")
  return tuple(outer)


def _arranged(devices: list[jax.Device], shape: tuple[int, ...]) -> np.ndarray:
  """The devices in the mesh's shape, near ones along the last axes."""
  if devices[0].platform != "tpu":
    return np.asarray(devices).reshape(shape)
  slices = len({getattr(d, "slice_index", 0) for d in devices})
  if slices == 1:
    return mesh_utils.create_device_mesh(
        shape, devices, allow_split_physical_axes=True)
  outer = over_slices(shape, slices)
  inner = tuple(s // o for s, o in zip(shape, outer))
  return mesh_utils.create_hybrid_device_mesh(
      inner, outer, devices, allow_split_physical_axes=True)


def inference_mesh(kv_heads: int,
                   devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh to generate on: tensor-parallel as far as the KV heads go.

  Reading one token gives nothing to hide a gather of weights behind, so they
  lie over `tensor` alone; what devices are left share the rows.
  """
  devices = list(jax.devices() if devices is None else devices)
  tensor = math.gcd(len(devices), kv_heads)
  return make_mesh(MeshConfig(data=-1, tensor=tensor), devices)


def abstract_mesh(axes: dict[str, int], platform: str = "") -> AbstractMesh:
  """A mesh without devices, enough for shapes on a device of a platform."""
  device = AbstractDevice("", None, platform) if platform else None
  return AbstractMesh(tuple(axes.values()), tuple(axes),
                      axis_types=(AxisType.Auto,) * len(axes),
                      abstract_device=device)
