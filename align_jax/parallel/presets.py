"""Meshes by accelerator, as data: a start for a config, no law.

  c.mesh = mesh_for("v5e-256")            # in a config
  c.mesh = mesh_for("v5e-256", slices=4)

What they are made of:

  fsdp over a whole slice   weights, gradients and moments are cut as small as
                            they get, and gathered over the fast network
  data over slices          one sum of gradients a step goes over the slow one
  tensor, context           1: up to 8B a layer's product fills a chip without
                            them, and they cost a collective a product
"""

import dataclasses

from align_jax.config import MeshConfig
from align_jax.errors import InputError
from align_jax.registry import nearest


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """A machine or a slice that can be booked.

  Attributes:
    chips: devices as JAX counts them.
    topology: its name to compile for without having it; "" if there is none.
    fsdp: devices along fsdp; data takes the rest.
  """
  chips: int
  topology: str
  fsdp: int


# Cloud TPU names count chips for v5e and v6e, and cores, two a chip, for v4
# and v5p (https://docs.cloud.google.com/tpu/docs/). GPUs: fsdp inside a node.
ACCELERATORS: dict[str, Accelerator] = {
    "v4-8": Accelerator(4, "v4:2x2x1", 4),
    "v4-16": Accelerator(8, "v4:2x2x2", 8),
    "v4-32": Accelerator(16, "v4:2x2x4", 16),
    "v4-64": Accelerator(32, "v4:2x4x4", 32),
    "v4-128": Accelerator(64, "v4:4x4x4", 64),
    "v4-256": Accelerator(128, "v4:4x4x8", 128),
    "v4-512": Accelerator(256, "v4:4x8x8", 128),
    "v5e-4": Accelerator(4, "v5e:2x2", 4),
    "v5e-8": Accelerator(8, "v5e:2x4", 8),
    "v5e-16": Accelerator(16, "v5e:4x4", 16),
    "v5e-32": Accelerator(32, "v5e:4x8", 32),
    "v5e-64": Accelerator(64, "v5e:8x8", 64),
    "v5e-128": Accelerator(128, "v5e:8x16", 128),
    "v5e-256": Accelerator(256, "v5e:16x16", 256),
    "v5p-8": Accelerator(4, "v5p:2x2x1", 4),
    "v5p-16": Accelerator(8, "v5p:2x2x2", 8),
    "v5p-32": Accelerator(16, "v5p:2x2x4", 16),
    "v5p-64": Accelerator(32, "v5p:2x4x4", 32),
    "v5p-128": Accelerator(64, "v5p:4x4x4", 64),
    "v5p-256": Accelerator(128, "v5p:4x4x8", 128),
    "v5p-512": Accelerator(256, "v5p:4x8x8", 128),
    "v5p-1024": Accelerator(512, "v5p:8x8x8", 128),
    "v6e-4": Accelerator(4, "v6e:2x2", 4),
    "v6e-8": Accelerator(8, "v6e:2x4", 8),
    "v6e-16": Accelerator(16, "v6e:4x4", 16),
    "v6e-32": Accelerator(32, "v6e:4x8", 32),
    "v6e-64": Accelerator(64, "v6e:8x8", 64),
    "v6e-128": Accelerator(128, "v6e:8x16", 128),
    "v6e-256": Accelerator(256, "v6e:16x16", 256),
    "h100-1": Accelerator(1, "", 1),
    "h100-8": Accelerator(8, "", 8),
    "a100-8": Accelerator(8, "", 8),
}


def mesh_for(name: str, slices: int = 1) -> MeshConfig:
  """The mesh of an accelerator type, or of several slices or nodes of it.

  Raises:
    InputError: an unknown type.
  """
  if name not in ACCELERATORS:
    raise InputError(
        f"unknown accelerator type {name!r}{nearest(name, ACCELERATORS)} "
        f"(known: {', '.join(ACCELERATORS)})")
  found = ACCELERATORS[name]
  return MeshConfig(data=slices * found.chips // found.fsdp, fsdp=found.fsdp)
