"""A batch on the devices: its shapes, and how it gets there.

`batch["extras"]` holds fields that a connector or an objective declares, by
name, as shapes [B,S,...]. A source gives `example["extras"][name]`, an array
[...] of that dtype, for a sample; the k-th sample of a row, whose segment is
k + 1, has it at [row, k]. S is a budget like the others of a row: no more
than S samples are packed into it. A sample that gives nothing has zeros, one
that gives another shape or dtype is a bad sample, and fields that nobody
declared are left out. They are sharded by rows, as all of a batch.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from align_jax.config import DataConfig
from align_jax.errors import InputError
from align_jax.parallel.layout import ROWS


def batch_spec(
    config: DataConfig, image_size: int,
    extras: Mapping[str, jax.ShapeDtypeStruct] | None = None,
) -> dict[str, Any]:
  """Shapes and dtypes of a global batch, field by field."""
  B, L, N = config.rows, config.row_length, config.images_per_row
  ints = jax.ShapeDtypeStruct((B, L), np.int32)
  return {
      "tokens": ints,
      "targets": ints,
      "loss_weights": jax.ShapeDtypeStruct((B, L), np.float32),
      "positions": ints,
      "segment_ids": ints,
      "images": jax.ShapeDtypeStruct((B, N, image_size, image_size, 3),
                                     np.uint8),
      "image_segment_ids": jax.ShapeDtypeStruct((B, N), np.int32),
      "image_boxes": jax.ShapeDtypeStruct((B, N, 4), np.int32),
      "visual_index": ints,
      "extras": dict(extras or {}),
  }


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over replica, data and fsdp; the other axes of a field whole."""
  return NamedSharding(mesh, P(ROWS))


def local_rows(mesh: Mesh, rows: int) -> list[int]:
  """The global rows that this process's devices hold, in order.

  Raises:
    InputError: the mesh does not divide the rows.
  """
  shards = int(np.prod([mesh.shape[axis] for axis in ROWS]))
  if rows % shards:
    raise InputError(f"data.rows = {rows} is no multiple of the {shards} "
                     f"shards of mesh axes {', '.join(ROWS)}")
  held = batch_sharding(mesh).addressable_devices_indices_map((rows,))
  return sorted({row for (part,) in held.values()
                 for row in range(*part.indices(rows))})


def place(batch: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
  """This process's rows (see `local_rows`) as part of global arrays."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
