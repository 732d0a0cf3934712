"""The files of code in a folder that others load.

They are the torch files of `hub/remote/` and, where images are cut into tiles,
the modules of ours that cut them: with other names for what they import, and
nothing else changed, so that there is one way to cut.
"""

import importlib
import re
import shutil
from pathlib import Path

from align_jax.data import TILINGS
from align_jax.hub.remote_connectors import FOLDER

_OURS = re.compile(r"^from (align_jax[\w.]*)\.(\w+) import ", re.MULTILINE)
_BESIDE = re.compile(r"^from \.(\w+_align_jax) import ", re.MULTILINE)


def copy_code(folder: Path, connector: str, tiling: str = "") -> None:
  """Writes a model's code.

  Args:
    folder: where to.
    connector: the file in hub/remote/ that holds it.
    tiling: how images are cut, a name of `TILINGS`, or "".
  """
  for name in ("modeling_align_jax", "processing_align_jax"):
    shutil.copyfile(FOLDER / f"{name}.py", folder / f"{name}.py")
  source = FOLDER / f"{connector}.py"
  shutil.copyfile(source, folder / "connector_align_jax.py")
  for name in _BESIDE.findall(source.read_text(encoding="utf-8")):
    shutil.copyfile(FOLDER / f"{name}.py", folder / f"{name}.py")
  if not tiling:
    return
  strategy = TILINGS.get(tiling)
  module = strategy.__module__
  _copy_ours(module, folder)
  name = "processing_tiles_align_jax.py"
  text = (FOLDER / name).read_text(encoding="utf-8")
  (folder / name).write_text(text.replace(
      "from .STRATEGY_align_jax import Strategy",
      f"from .{module.rpartition('.')[2]}_align_jax import "
      f"{strategy.__name__} as Strategy"), encoding="utf-8")


def _copy_ours(module: str, folder: Path) -> None:
  """A module of ours and those that it imports, as MODULE_align_jax.py."""
  source = Path(importlib.import_module(module).__file__ or "")
  text = source.read_text(encoding="utf-8")
  for package, name in _OURS.findall(text):
    _copy_ours(f"{package}.{name}", folder)
  (folder / f"{source.stem}_align_jax.py").write_text(
      _OURS.sub(r"from .\2_align_jax import ", text), encoding="utf-8")
