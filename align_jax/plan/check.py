"""Faults that a plan finds before anything is compiled; all of them at once.
"""

import math
from typing import Any

from align_jax.build import Parts
from align_jax.config import Config, StageConfig
from align_jax.errors import ConfigError
from align_jax.parallel.layout import AXES, ROWS
from align_jax.parallel.mesh import mesh_shape
from align_jax.registry import nearest


def check(config: Config, parts: Parts, devices: int) -> dict[str, int]:
  """Devices along each axis of the mesh.

  Raises:
    ConfigError: a mesh that does not make up the devices, rows that the mesh
      does not divide, heads that `tensor` does not divide.
  """
  faults = []
  try:
    axes = dict(zip(AXES, mesh_shape(config.mesh, devices)))
  except ValueError as error:
    raise ConfigError(config.name, [str(error)]) from error
  shards = math.prod(axes[a] for a in ROWS)
  for i, stage in enumerate(config.stages):
    data = config.of(stage).data
    micro = data.rows // stage.accumulate
    if micro % shards:
      faults.append(
          f"stages[{i}]: {data.rows} rows in {stage.accumulate} "
          f"microbatches are {micro} rows, which the {shards} devices of "
          "mesh axes replica x data x fsdp do not share evenly")
    if data.row_length % axes["context"]:
      faults.append(f"stages[{i}]: rows of {data.row_length} tokens do not "
                    f"divide by mesh.context = {axes['context']}")
  faults += head_faults(parts, axes["tensor"])
  if faults:
    raise ConfigError(config.name, faults)
  return axes


def head_faults(parts: Parts, tensor: int) -> list[str]:
  """Of a decoder whose heads that many devices cannot share."""
  sizes: Any = getattr(getattr(parts.model, "decoder", None), "config", None)
  heads = getattr(sizes, "heads", tensor)
  groups = getattr(sizes, "kv_heads", tensor)
  faults = []
  if heads % tensor:
    faults.append(f"mesh.tensor: {tensor} devices do not divide the "
                  f"decoder's {heads} heads")
  elif groups % tensor and tensor % groups:
    faults.append(f"mesh.tensor: {tensor} devices and the decoder's {groups} "
                  "key-value heads do not divide one another")
  return faults


def stage_named(config: Config, name: str) -> StageConfig:
  """A stage of the config.

  Raises:
    ConfigError: it has no such stage.
  """
  names = [s.name for s in config.stages]
  if name not in names:
    raise ConfigError(config.name, [
        f"--stage {name}: no such stage{nearest(name, names)} "
        f"(it has {', '.join(names)})"])
  return config.stages[names.index(name)]
