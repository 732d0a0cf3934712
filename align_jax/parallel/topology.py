"""A topology's name -> its devices: here, virtual, or an absent TPU slice.

  "here"        the devices at hand
  "cpu:8"       that many virtual devices of this machine's processor
  "v5e:16x16"   a TPU slice that need not be here

libtpu, an ordinary package, compiles for a slice that is absent. Nothing can
be run on such devices; compiled programs tell their memory and their FLOPs.
"""

import importlib.metadata
import importlib.util
import math
import os
import re

import jax

from align_jax.errors import InputError
from align_jax.parallel.presets import ACCELERATORS
from align_jax.registry import nearest

INSTALL = 'pip install "align-jax[tpu]"'

_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8",
         "8x8x8", "8x8x16", "8x16x16")
# Versions of libtpu whose compiler's threads have some 64 KiB of stack. It
# calls itself for each product of matrices that it fuses into another, and
# overflows on the step of SAM. A version that does not know the flag ends the
# process.
_SMALL_STACKS = ("0.0.42.1",)
_STACK = "--fibers_default_thread_stack_size"

# libtpu takes the two cores of a v4 chip for two devices unless it is told
# that they work as one.
_AS_ONE = {"v4": {"chip_config_name": "megacore"}}

# The shapes that are offered, by kind of chip.
SLICES: dict[str, tuple[str, ...]] = {
    "v4": _CUBE, "v5e": _FLAT, "v5p": _CUBE, "v6e": _FLAT}


class NoCompilerError(InputError):
  """libtpu is not installed."""


def topology_names() -> list[str]:
  return [f"{chip}:{shape}" for chip, shapes in SLICES.items()
          for shape in shapes]


def parse(name: str) -> tuple[str, tuple[int, ...]]:
  """("v5e", (16, 16)) of "v5e:16x16"; ("here", ()) of "here".

  Raises:
    InputError: no such topology, with the nearest one.
  """
  if name == "here":
    return "here", ()
  chip, _, shape = name.partition(":")
  if chip == "cpu" and re.fullmatch(r"[1-9]\d*", shape):
    return "cpu", (int(shape),)
  if shape in SLICES.get(chip, ()):
    return chip, tuple(map(int, shape.split("x")))
  known = "; ".join(f"{c}: {', '.join(s)}" for c, s in SLICES.items())
  booked = ACCELERATORS.get(name)  # what Cloud TPU calls it
  hint = (f"; did you mean {booked.topology!r}?" if booked and booked.topology
          else nearest(name, topology_names()))
  raise InputError(
      f"unknown topology {name!r}{hint} (known: here; cpu:N; {known})")


def size(name: str) -> int:
  """The devices of a topology, without asking for them."""
  chip, shape = parse(name)
  return len(jax.devices()) if chip == "here" else math.prod(shape)


def devices_of(name: str) -> list[jax.Device]:
  """The devices of a topology.

  Raises:
    InputError: no such topology, or fewer virtual devices than it asks for.
    NoCompilerError: an absent TPU, and libtpu is not installed.
  """
  chip, shape = parse(name)
  if chip == "here":
    return list(jax.devices())
  if chip == "cpu":
    return _virtual(shape[0])
  return tpu_devices(name)


def _virtual(count: int) -> list[jax.Device]:
  if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    try:
      jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # arrays were made already: what there is, stays
      pass
  devices = jax.devices("cpu")
  if len(devices) < count:
    raise InputError(
        f"cpu:{count}: this process has {len(devices)} processor devices; "
        f"set XLA_FLAGS=--xla_force_host_platform_device_count={count}")
  return devices[:count]


def tpu_devices(name: str) -> list[jax.Device]:
  """The devices of an absent TPU slice.

  Args:
    name: such as "v5e:4x4", "v5p:4x4x4", "v4:2x2x4".

  Raises:
    NoCompilerError: libtpu is missing.
    InputError: it knows no such topology.
  """
  chip, _ = parse(name)
  if importlib.util.find_spec("libtpu") is None:
    raise NoCompilerError(
        f"compiling for {name} takes libtpu, which is not installed: "
        f"{INSTALL}")
  # Or libtpu asks a metadata server for a TPU that is not there.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  # Only compiling, so that several processes may at one time.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  if importlib.metadata.version("libtpu") in _SMALL_STACKS:
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    if _STACK not in given:
      os.environ["LIBTPU_INIT_ARGS"] = f"{given} {_STACK}={1 << 20}".strip()
  from jax.experimental import topologies

  try:
    found = topologies.get_topology_desc(
        platform="tpu", topology_name=name, **_AS_ONE.get(chip, {}))
  except Exception as error:  # the plugin raises a bare XlaRuntimeError
    raise InputError(f"libtpu cannot compile for {name!r}: {error}") from error
  return list(found.devices)
