"""What is installed is whole, and needs neither torch nor TensorFlow."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

_IMPORT_ALL = """
import importlib, importlib.machinery as machinery, pkgutil

find = machinery.PathFinder.find_spec
machinery.PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name.split(".")[0] == "torch" else find(name, path, target))
import align_jax
for module in pkgutil.walk_packages(align_jax.__path__, "align_jax."):
  importlib.import_module(module.name)
  print(module.name)
"""


def test_every_module_imports_without_torch_and_tensorflow():
  done = subprocess.run([sys.executable, "-c", _IMPORT_ALL], cwd=ROOT,
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "align_jax.vlm" in done.stdout
  assert importlib.util.find_spec("tensorflow") is None


def test_help_of_every_verb_explains_itself(capsys):
  from align_jax.cli.main import VERBS, main
  for verb in VERBS:
    with pytest.raises(SystemExit) as stop:
      main([verb, "--help"])
    assert stop.value.code == 0
    assert f"align-jax {verb}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_wheel_holds_configs_weights_and_the_command(tmp_path):
  subprocess.run(
      [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps",
       "--no-build-isolation", "--quiet", "-w", str(tmp_path)], check=True)
  wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
  names = set(wheel.namelist())
  assert {"align_jax/configs/quickstart.py", "align_jax/configs/mini/clip.py",
          "align_jax/weights/mini_clip/model.safetensors",
          "align_jax/vlm.py"} <= names
  entry = next(n for n in names if n.endswith("entry_points.txt"))
  assert b"align-jax = align_jax.cli.main:main" in wheel.read(entry)
  assert not any(n.startswith("tests/") for n in names)
