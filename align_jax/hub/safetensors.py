"""Safetensors files: slices in, lazily; whole models out, in pieces.

Pickles (`pytorch_model.bin`) are refused: reading one runs what is in it.
"""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import ml_dtypes  # noqa: F401  (gives numpy the dtype bfloat16)
import numpy as np
import safetensors
import safetensors.numpy

from align_jax.errors import InputError

_INDEX = "model.safetensors.index.json"
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16,
           "BF16": ml_dtypes.bfloat16}


class SafetensorsReader:
  """The tensors of a file, or of the files of a folder.

  Attributes:
    files: key -> the file that holds it.
  """

  def __init__(self, path: Path):
    """Opens `model.safetensors`, or what its index lists, or one file.

    Raises:
      InputError: nothing to read, a pickle, or files that are cut short.
    """
    self.files: dict[str, Path] = {}
    self._open = {}
    if path.is_file():
      paths, listed = [path], None
    elif (path / _INDEX).exists():
      listed = json.loads((path / _INDEX).read_text())["weight_map"]
      paths = [path / name for name in sorted(set(listed.values()))]
    else:
      paths, listed = sorted(path.glob("*.safetensors")), None
      if (path / "model.safetensors") in paths:
        paths = [path / "model.safetensors"]
    if not paths:
      raise InputError(f"{path} holds no *.safetensors{_pickles(path)}")
    for file in paths:
      self._open[file] = _opened(file)
      self.files |= dict.fromkeys(self._open[file].keys(), file)
    if listed is not None and (lost := sorted(set(listed) - set(self.files))):
      raise InputError(
          f"{path / _INDEX} lists tensors that its files do not hold: "
          f"{', '.join(lost[:5])}{' ...' if len(lost) > 5 else ''}")

  def keys(self) -> Iterable[str]:
    return self.files.keys()

  def shape(self, key: str) -> tuple[int, ...]:
    return tuple(self._slice(key).get_shape())

  def dtype(self, key: str) -> np.dtype | None:
    """The tensor's dtype; None for one that we do not read."""
    kind = _DTYPES.get(self._slice(key).get_dtype())
    return None if kind is None else np.dtype(kind)

  def read(self, key: str, index: tuple[slice, ...]) -> np.ndarray:
    """Part of a tensor; nothing else of it is read."""
    # An empty index is refused by the reader of scalars.
    return self._slice(key)[index] if index else self._open[
        self.files[key]].get_tensor(key)

  def origin(self, key: str) -> str:
    return f"{self.files[key]}:{key}"

  def _slice(self, key: str):
    return self._open[self.files[key]].get_slice(key)


def _pickles(path: Path) -> str:
  found = sorted(p.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt")
                 for p in path.glob(kind))
  return "" if not found else (
      f"; {', '.join(found[:3])} there is a pickle, which can run any code "
      "when it is read, and is refused: have its owner save it as safetensors")


def _opened(file: Path) -> safetensors.safe_open:
  if file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
    raise InputError(
        f"{file} is a pickle, which can run any code when it is read, and is "
        "refused: have its owner save it as safetensors")
  if not file.exists():
    raise InputError(f"the index {file.parent / _INDEX} lists {file.name}, "
                     "which is not there")
  try:
    return safetensors.safe_open(file, framework="numpy")
  except (safetensors.SafetensorError, OSError) as error:
    raise InputError(f"{file} {_damage(file)} ({error})") from error


def _damage(file: Path) -> str:
  """What is wrong with a file that does not open."""
  size = file.stat().st_size
  head = file.open("rb").read(8)
  if head.startswith(b"version "):
    return "is a Git LFS pointer; fetch the file itself with `git lfs pull`"
  length = int.from_bytes(head, "little")
  if size < 8 or length > size - 8:
    if length > 1 << 30:
      return "is no safetensors file"
    return f"is cut short: {size:,} bytes, its header alone has {length:,}"
  try:
    with file.open("rb") as f:
      f.seek(8)
      header = json.loads(f.read(length))
    end = max(t["data_offsets"][1] for name, t in header.items()
              if name != "__metadata__")
    if size < 8 + length + end:
      return (f"is cut short: {size:,} bytes of {8 + length + end:,}; "
              "fetch it again")
  except (ValueError, KeyError, TypeError):
    pass
  return "is no sound safetensors file"


def write_safetensors(
    folder: Path,
    tensors: list[tuple[str, tuple[int, ...], np.dtype,
                        Callable[[], np.ndarray]]],
    max_bytes: int = 4 << 30,
) -> None:
  """Writes tensors, at most `max_bytes` a file, holding one file at a time.

  Args:
    folder: where; made if need be.
    tensors: (key, shape, dtype, function that gives the values).
    max_bytes: of tensors in one file. One file has no index beside it.
  """
  folder.mkdir(parents=True, exist_ok=True)
  files: list[list] = [[]]
  room = max_bytes
  for tensor in tensors:
    _, shape, dtype, _ = tensor
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size > room and files[-1]:
      files.append([])
      room = max_bytes
    files[-1].append(tensor)
    room -= size
  names = ["model.safetensors"] if len(files) == 1 else [
      f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
      for i in range(len(files))]
  for name, group in zip(names, files):
    safetensors.numpy.save_file(
        {key: make() for key, _, _, make in group}, folder / name,
        metadata={"format": "pt"})
  if len(files) > 1:
    total = sum(math.prod(s) * np.dtype(d).itemsize for _, s, d, _ in tensors)
    (folder / _INDEX).write_text(json.dumps({
        "metadata": {"total_size": total},
        "weight_map": {key: name for name, group in zip(names, files)
                       for key, *_ in group},
    }, indent=2) + "\n")
