"""Safetensors files: slices in, lazily.

Pickles (`pytorch_model.bin`) are refused: reading one runs what is in it.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import ml_dtypes  # noqa: F401  (gives numpy the dtype bfloat16)
import numpy as np
import safetensors

from align_jax.errors import InputError

INDEX = "model.safetensors.index.json"
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16,
          "BF16": ml_dtypes.bfloat16}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_REFUSED = (
    "a pickle can run any code when it is read, so it is refused. Have its "
    "owner save it as safetensors; or, if you trust it, convert it once, with "
    "torch and transformers installed: AutoModel.from_pretrained(FOLDER)"
    ".save_pretrained(OTHER_FOLDER)")


class SafetensorsReader:
  """The tensors of a file, or of the files of a folder.

  Attributes:
    files: key -> the file that holds it.
  """

  def __init__(self, path: Path):
    """Opens `model.safetensors`, or what its index lists, or one file.

    Raises:
      InputError: nothing to read, a pickle, files that are cut short or
        missing, or an index that does not agree with its files.
    """
    self.files: dict[str, Path] = {}
    self._open = {}
    listed: dict[str, str] | None = None
    if path.is_file():
      paths = [path]
    elif (path / INDEX).exists():
      listed = _index(path / INDEX)
      paths = [path / name for name in sorted(set(listed.values()))]
      if lost := [p.name for p in paths if not p.exists()]:
        raise InputError(f"the index {path / INDEX} lists {', '.join(lost)}, "
                         "which is not there; fetch it again")
    else:
      paths = sorted(path.glob("*.safetensors"))
      if (path / "model.safetensors") in paths:
        paths = [path / "model.safetensors"]
    if not paths:
      raise InputError(f"{path} holds no *.safetensors{_pickles(path)}")
    faults = []
    for file in paths:
      try:
        self._open[file] = _opened(file)
      except InputError as error:
        faults.append(str(error))
    if faults:
      raise InputError("\n".join(faults))
    for file, opened in self._open.items():
      for key in opened.keys():
        if key in self.files:
          faults.append(f"{key!r} is in {self.files[key].name} and in "
                        f"{file.name}")
        self.files[key] = file
    if listed is not None:
      faults += self._against(listed)
    if faults:
      shown = faults[:10] + ([f"and {len(faults) - 10} more"]
                             if len(faults) > 10 else [])
      raise InputError(f"{path}: its files contradict each other:\n  "
                       + "\n  ".join(shown))

  def _against(self, listed: dict[str, str]) -> list[str]:
    """What the index says and the files do not, and the other way round."""
    faults = []
    for key, name in listed.items():
      if key not in self.files:
        faults.append(f"the index lists {key!r} in {name}, which does not "
                      "hold it")
      elif self.files[key].name != name:
        faults.append(f"the index lists {key!r} in {name}, it is in "
                      f"{self.files[key].name}")
    faults += [f"{file.name} holds {key!r}, which the index does not list"
               for key, file in self.files.items() if key not in listed]
    return faults

  def keys(self) -> Iterable[str]:
    return self.files.keys()

  def shape(self, key: str) -> tuple[int, ...]:
    return tuple(self._slice(key).get_shape())

  def dtype(self, key: str) -> np.dtype | None:
    """The tensor's dtype; None for one that we do not read."""
    kind = DTYPES.get(self._slice(key).get_dtype())
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


def _index(path: Path) -> dict[str, str]:
  """The weight map of an index: key -> name of a file beside it."""
  try:
    listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    names = set(listed.values())
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(
        f"{path} is no sound index: it has no readable \"weight_map\" "
        f"({type(error).__name__}: {error}); fetch it again") from error
  wrong = [n for n in names if not isinstance(n, str) or Path(n).name != n
           or not n.endswith(".safetensors")]
  if wrong or not names:
    said = ("names no file" if not names else
            f"names {wrong[0]!r}, which is no *.safetensors beside it")
    refused = (f"; {_REFUSED}" if any(
        str(n).endswith(_PICKLES) for n in wrong) else "")
    raise InputError(f"{path} is no sound index: it {said}{refused}")
  return listed


def _pickles(path: Path) -> str:
  """Which pickles lie where safetensors were looked for."""
  found = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLES
                 ) if path.is_dir() else []
  return "" if not found else (
      f"; {', '.join(found[:3])} there is a pickle: {_REFUSED}")


def _opened(file: Path) -> safetensors.safe_open:
  if file.suffix in _PICKLES:
    raise InputError(f"{file} is a pickle: {_REFUSED}")
  try:
    return safetensors.safe_open(file, framework="numpy")
  except (safetensors.SafetensorError, OSError) as error:
    raise InputError(f"{file} {_damage(file)} ({error})") from error


def _damage(file: Path) -> str:
  """What is wrong with a file that does not open."""
  size = file.stat().st_size
  with file.open("rb") as stream:
    head = stream.read(8)
  if head.startswith(b"version "):
    return "is a Git LFS pointer; fetch the file itself with `git lfs pull`"
  # torch saves a zip of pickles, and saved bare ones; protocol 2 and up.
  if head.startswith(b"PK\x03\x04") or head[:1] == b"\x80" and (
      head[1:2] in b"\x02\x03\x04\x05"):
    return f"is a pickle, whatever its name says: {_REFUSED}"
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
