"""A file that a record names, which must lie below its image folder."""

from pathlib import Path
from typing import Any

from align_jax.data.example import BadSample
from align_jax.errors import InputError


def folder(root: str | Path, name: str = "image_root") -> Path:
  """The resolved folder.

  Raises:
    InputError: there is none.
  """
  path = Path(root).expanduser()
  if not path.is_dir():
    raise InputError(f"{name} {str(path)!r} is no folder")
  return path.resolve()


def below(root: Path, name: Any, origin: str) -> Path:
  """The path of an image.

  Args:
    root: resolved.
    name: as the record has it.
    origin: of the record, for errors.

  Raises:
    BadSample: no path, or one that leaves the folder, also through a
      symbolic link.
  """
  if not isinstance(name, str) or not name:
    raise BadSample(origin, f"an image is a path, not {name!r:.60}")
  try:
    path = (root / name).resolve()
  except (OSError, RuntimeError, ValueError) as error:
    raise BadSample(origin, f"image {name!r}: {error}") from error
  if not path.is_relative_to(root):
    raise BadSample(origin, f"image {name!r} leaves the image folder "
                    f"{str(root)!r}")
  return path
