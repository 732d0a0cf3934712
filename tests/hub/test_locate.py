"""Paths and files inside packages."""

import sys
from pathlib import Path

import pytest

from align_jax.errors import InputError
from align_jax.hub.locate import locate


def test_a_folder(tmp_path: Path) -> None:
  assert locate(str(tmp_path)) == tmp_path


def test_a_file_in_a_package_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  package = tmp_path / "heavy_weights"
  package.mkdir()
  (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
  (package / "model.gguf").write_bytes(b"")
  monkeypatch.syspath_prepend(str(tmp_path))
  assert locate("pkg:heavy_weights/model.gguf") == package / "model.gguf"
  assert "heavy_weights" not in sys.modules
  with pytest.raises(InputError, match="did you mean 'model.gguf'"):
    locate("pkg:heavy_weights/modle.gguf")


@pytest.mark.parametrize("given,says", [
    ("pkg:no_such_thing/x", "no installed package 'no_such_thing'"),
    ("/no/such/folder/x", "there is no folder /no/such/folder"),
])
def test_what_is_not_there(given: str, says: str) -> None:
  with pytest.raises(InputError, match=says):
    locate(given)
