"""What the compiler made of a program, kept so that it is asked but once.

A step of a large model takes minutes to compile, and what a plan wants of it
is its text and four numbers. Both are kept under a name made of the program
before compilation, the topology and the compiler's version, so that a plan of
many configs goes on where it was broken off, and a change of what is read off
a program needs no new one.
"""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("jaxlib", "libtpu")


@dataclasses.dataclass(frozen=True)
class Compiled:
  """An optimised program of one device.

  Attributes:
    text: its HLO; "" where the compiler refused.
    arguments, temporaries, outputs: bytes.
    aliased: bytes of the outputs that lie where arguments lay.
    seconds: that compiling took.
    refusal: the compiler's words where memory is short; else "".
    peak: bytes that live at one time, at most; 0 where nothing tells.
    packed: bytes that they take as the compiler lays them out, gaps counted;
      0 where nothing tells.
  """
  text: str
  arguments: float
  temporaries: float
  outputs: float
  aliased: float
  seconds: float
  refusal: str = ""
  peak: float = 0
  packed: float = 0

  @property
  def used(self) -> float:
    """Bytes of memory that it needs.

    On TPUs `temporaries` counts more than what is laid out, up to twice as
    much, and the compiler's report on its buffers is what holds.
    """
    return self.packed or (self.arguments + self.temporaries + self.outputs
                           - self.aliased)


def compiled(lowered: jax.stages.Lowered, topology: str,
             folder: str = "") -> Compiled:
  """Compiles a program, or reads what was kept of it.

  Args:
    lowered: the program.
    topology: what it is compiled for.
    folder: where programs are kept; "" keeps none.

  Raises:
    Exception: the compiler's own, unless it says that memory is short.
  """
  if not folder:
    return _compile(lowered)
  path = Path(folder) / f"{_name(lowered, topology)}.json.gz"
  if path.exists():
    with gzip.open(path, "rt", encoding="utf-8") as file:
      return Compiled(**json.load(file))
  found = _compile(lowered)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_suffix(f".{os.getpid()}")
  with gzip.open(part, "wt", encoding="utf-8") as file:
    json.dump(dataclasses.asdict(found), file)
  part.replace(path)
  return found


def _compile(lowered: jax.stages.Lowered) -> Compiled:
  since = time.monotonic()
  with tempfile.TemporaryDirectory() as report:
    try:
      made = lowered.compile(compiler_options={"xla_dump_to": report})
    except jax.errors.JaxRuntimeError as error:
      if not short_of_memory(error):
        raise
      return Compiled("", 0, 0, 0, 0, time.monotonic() - since,
                      str(error).splitlines()[0][:300])
    seconds = time.monotonic() - since
    packed = max(map(_packed, Path(report).glob("*memory-usage-report.txt")),
                 default=0.0)
  found = made.memory_analysis()
  return Compiled(
      made.as_text(), float(found.argument_size_in_bytes),
      float(found.temp_size_in_bytes), float(found.output_size_in_bytes),
      float(found.alias_size_in_bytes), seconds,
      peak=float(found.peak_memory_in_bytes), packed=packed)


def _packed(report: Path) -> float:
  """Bytes of main memory in a compiler's report on its buffers."""
  found = re.search(r"Memory Space: default \(color=0\)\s*Total bytes: (\d+)",
                    report.read_text(encoding="utf-8", errors="replace"))
  return float(found[1]) if found else 0.0


def _name(lowered: jax.stages.Lowered, topology: str) -> str:
  digest = hashlib.sha256(lowered.as_text().encode())
  for package in _PACKAGES:
    try:
      digest.update(importlib.metadata.version(package).encode())
    except importlib.metadata.PackageNotFoundError:
      digest.update(b"none")
  return f"{topology.replace(':', '_')}-{digest.hexdigest()[:24]}"


def short_of_memory(error: Any) -> bool:
  """Whether a compiler's error says that a program does not fit."""
  text = str(error)
  return "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
