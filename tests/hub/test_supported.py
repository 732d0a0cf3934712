"""The README's table is the registry's."""

from pathlib import Path

import pytest

from align_jax.errors import InputError
from align_jax.hub.keymaps import FAMILIES
from align_jax.hub.supported import rows, table, write_readme

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_has_the_table() -> None:
  assert table() in README.read_text(encoding="utf-8"), (
      "run: align-jax convert supported --readme README.md")


def test_every_family_has_its_row() -> None:
  assert {r["model_type"] for r in rows()} == set(FAMILIES.names())


def test_a_file_without_marks_is_refused(tmp_path: Path) -> None:
  (tmp_path / "README.md").write_text("nothing")
  with pytest.raises(InputError, match="has no <!-- supported -->"):
    write_readme(tmp_path / "README.md")
