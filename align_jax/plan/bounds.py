"""What bounds a step: arithmetic, main memory, or the way between chips.

The ceiling on MFU takes transfers as not overlapped with anything:

  seconds >= max(FLOPs / peak, traffic / bandwidth) + sum of transfers
  ceiling  = model FLOPs / peak / seconds

A transfer over a torus goes through the dimensions in which its devices
differ. A dimension that is a ring gives two links of one direction, a line
only one, for its last device has no other. Where the compiler passes pieces
from device to device instead, it does so both ways around, at the same rate.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from align_jax.plan.chips import Chip
from align_jax.plan.measure import Collective, Measured


@dataclasses.dataclass(frozen=True)
class Bounds:
  """Seconds of one step, each as if it were alone.

  Attributes:
    interconnect: of all transfers, one after the other.
    step: the least a step can take.
    ceiling: of MFU, in [0, 1].
    binding: "compute", "memory" or "interconnect", the largest.
  """
  compute: float
  memory: float
  interconnect: float
  step: float
  ceiling: float
  binding: str


def bounds(measured: Measured, model_flops: float, chip: Chip,
           places: np.ndarray) -> Bounds:
  """The bounds of one step.

  Args:
    measured: one device's program.
    model_flops: of the step, by the convention, over all devices.
    chip: of the devices.
    places: i32[devices, dimensions] of the torus, in the order of the mesh.
  """
  shape = places.max(0) + 1 if places.size else np.zeros(0, int)
  transfer = sum(c.times * c.wire / link_rate(chip, shape, places, c)
                 for c in measured.collectives if c.wire)
  compute = measured.flops / chip.peak
  memory = measured.traffic / chip.bandwidth
  step = max(compute, memory) + transfer
  alone = {"compute": compute, "memory": memory, "interconnect": transfer}
  ceiling = model_flops / len(places) / chip.peak / step if step else 0.0
  return Bounds(compute, memory, transfer, step, min(ceiling, 1.0),
                max(alone, key=alone.get))


def link_rate(chip: Chip, shape: Sequence[int], places: np.ndarray,
              collective: Collective) -> float:
  """Bytes/s that one device can take in during a collective."""
  if not chip.torus:
    return chip.links / 2
  link = chip.links / (4 * chip.torus)  # one link, one direction
  group = places[collective.groups[0]]
  links = 0
  for dimension, length in enumerate(shape):
    reach = len(np.unique(group[:, dimension]))
    if reach > 1:
      ring = reach == length and length % chip.ring == 0
      links += 2 if ring else 1
  return link * max(links, 1)


def places_of(devices: Sequence) -> np.ndarray:
  """Where devices lie in their torus, i32[devices, dimensions]."""
  found = [tuple(getattr(d, "coords", ()) or ()) for d in devices]
  return np.array(found, int).reshape(len(found), -1)
