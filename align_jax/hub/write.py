"""Parameters out, in a foreign layout: safetensors, one tensor at a time.

The format is a length, a JSON header and the tensors' bytes one after the
other (https://github.com/huggingface/safetensors). A header needs shapes and
dtypes alone, so a file of any size is written while one tensor is held; the
library's own writer wants all of a file at once.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from align_jax.errors import InputError
from align_jax.hub.keymaps import Family
from align_jax.hub.match import expand, places
from align_jax.hub.safetensors import DTYPES, INDEX
from align_jax.registry import nearest

_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
# Files that an earlier, differently cut export may have left.
_OURS = ("model.safetensors", "model-*-of-*.safetensors", INDEX)


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor to be written; `make()` gives its values when they are needed."""
  key: str
  shape: tuple[int, ...]
  dtype: np.dtype
  make: Callable[[], np.ndarray]

  @property
  def size(self) -> int:
    """Its bytes."""
    return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def foreign_tensors(family: Family, params: Mapping[str, Any]) -> list[Tensor]:
  """A flat {path: array} in a family's layout.

  Raises:
    InputError: parameters that the family has no rule for.
  """
  lost = [f"{p}{nearest(p, family.rules)}" for p in params
          if p not in family.rules]
  if lost:
    raise InputError("this layout has no place for: " + ", ".join(lost))
  placed = places(family, params)
  sharing: dict[str, list[str]] = {}
  for path, place in placed.items():
    sharing.setdefault(place.key, []).append(path)
  tensors = []
  for key, paths in sharing.items():
    values = [params[p] for p in paths]
    stacked = "{n}" in key
    dtype = functools.reduce(jnp.promote_types, (v.dtype for v in values))
    for n, name in enumerate(expand(key, values[0].shape[0] if stacked
                                    else 0)):
      def make(n=n, stacked=stacked, paths=paths, dtype=dtype) -> np.ndarray:
        parts = [
            placed[p].transform.write(np.asarray(
                params[p][n] if stacked else params[p])) for p in paths]
        if len(parts) == 1:
          return parts[0]
        whole = np.empty(placed[paths[0]].shape, dtype)
        for path, part in zip(paths, parts):
          whole[tuple(slice(o, o + size) for o, size in zip(
              placed[path].origin, part.shape))] = part
        return whole
      tensors.append(Tensor(name, placed[paths[0]].shape, np.dtype(dtype),
                            make))
  return tensors


def write_safetensors(folder: Path, tensors: Sequence[Tensor],
                      max_bytes: int = 4 << 30) -> list[Path]:
  """Writes tensors, at most `max_bytes` a file, holding one at a time.

  Files take their names when all are whole. Those of an earlier export into
  the same folder go.

  Args:
    folder: where; made if need be.
    tensors: in their order.
    max_bytes: of tensors in one file. One file has no index beside it.

  Returns:
    The files.

  Raises:
    InputError: two tensors of one name.
  """
  keys = [t.key for t in tensors]
  if len(set(keys)) < len(keys):
    twice = sorted({k for k in keys if keys.count(k) > 1})
    raise InputError(f"tensors of one name: {', '.join(twice)}")
  folder.mkdir(parents=True, exist_ok=True)
  files: list[list[Tensor]] = [[]]
  room = max_bytes
  for tensor in tensors:
    if tensor.size > room and files[-1]:
      files.append([])
      room = max_bytes
    files[-1].append(tensor)
    room -= tensor.size
  names = ["model.safetensors"] if len(files) == 1 else [
      f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
      for i in range(len(files))]
  parts = [folder / f"{name}.part" for name in names]
  for part, group in zip(parts, files):
    _write(part, group)
  for pattern in _OURS:
    for old in folder.glob(pattern):
      old.unlink()
  for part in parts:
    part.rename(part.with_suffix(""))
  if len(files) > 1:
    (folder / INDEX).write_text(json.dumps({
        "metadata": {"total_size": sum(t.size for t in tensors)},
        "weight_map": {t.key: name for name, group in zip(names, files)
                       for t in group},
    }, indent=2) + "\n", encoding="utf-8")
  return [folder / name for name in names]


def _write(file: Path, tensors: Sequence[Tensor]) -> None:
  # Wide dtypes first, so that every tensor is aligned as its readers want.
  tensors = sorted(tensors, key=lambda t: -np.dtype(t.dtype).itemsize)
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  at = 0
  for t in tensors:
    header[t.key] = {"dtype": _NAMES[np.dtype(t.dtype)],
                     "shape": list(t.shape),
                     "data_offsets": [at, at + t.size]}
    at += t.size
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  with file.open("wb") as stream:
    stream.write(len(text).to_bytes(8, "little"))
    stream.write(text)
    for t in tensors:
      values = np.asarray(t.make(), order="C")
      if values.shape != t.shape or values.dtype != t.dtype:
        raise ValueError(f"{t.key}: {values.dtype}{list(values.shape)} where "
                         f"{t.dtype}{list(t.shape)} was announced")
      stream.write(values.reshape(-1).view(np.uint8).data)
      del values

