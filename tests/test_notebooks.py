"""Notebooks run as they stand, on a tiny run; and their pairs agree."""

from pathlib import Path

import pytest

from tests.evals import tiny_run

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("easy_vqa")

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(p.stem for p in NOTEBOOKS.glob("*.py"))


def test_there_are_notebooks():
  assert "01_quickstart" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_pair_agrees(name: str):
  script = jupytext.read(NOTEBOOKS / f"{name}.py")
  notebook = jupytext.read(NOTEBOOKS / f"{name}.ipynb")
  assert ([(c.cell_type, c.source) for c in script.cells]
          == [(c.cell_type, c.source) for c in notebook.cells])
  assert not any(c.get("outputs") for c in notebook.cells)


@pytest.mark.parametrize("name", NAMES)
def test_runs(name: str, monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setenv("ALIGN_JAX_RUN", str(tiny_run.shared()))
  # One device is enough here, and starts faster.
  monkeypatch.setenv("XLA_FLAGS", "")
  notebook = jupytext.read(NOTEBOOKS / f"{name}.py")
  nbclient.NotebookClient(
      notebook, timeout=300, kernel_name="python3",
      resources={"metadata": {"path": str(NOTEBOOKS.parent)}}).execute()
  outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
  assert any("image/png" in o.get("data", {}) for o in outputs)
  assert any("<svg" in str(o.get("data", {}).get("text/html", ""))
             for o in outputs)
