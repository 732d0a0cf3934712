"""Devices that are not here: TPU topologies to compile for.

libtpu, an ordinary package, compiles for a slice that is absent. Nothing can
be run on such devices; compiled programs tell their memory and their FLOPs.
"""

import os

import jax


def tpu_devices(name: str) -> list[jax.Device]:
  """The devices of an absent TPU slice.

  Args:
    name: such as "v5e:4x4", "v5p:4x4x4", "v4:2x2x4".

  Raises:
    ValueError: libtpu is missing, or knows no such topology.
  """
  # Or libtpu asks a metadata server for a TPU that is not there.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  from jax.experimental import topologies

  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=name)
  except Exception as error:  # the plugin raises a bare XlaRuntimeError
    raise ValueError(
        f"cannot compile for {name!r}: {error}. It takes libtpu "
        '(pip install "align-jax[tpu]") and a name such as v5e:4x4, v5p:4x4x4 '
        "or v6e:8x8") from error
  return list(found.devices)
