"""The small tower's two commands, at two steps."""

import json
from pathlib import Path

import pytest
import transformers

from align_jax.cli.main import main
from align_jax.hub.tower_face import load_tower

SMALL = [
    "--config.model.tower.config.width=16",
    "--config.model.tower.config.mlp_width=16",
    "--config.model.tower.config.layers=1",
    "--config.model.text.config.width=16",
    "--config.model.text.config.mlp_width=16",
    "--config.model.text.config.layers=1",
    "--config.data.rows=8", "--config.save_every=2",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
  folder = tmp_path_factory.mktemp("mini_clip") / "run"
  config = Path(__file__).parents[2] / "configs/mini/clip.py"
  steps = ["--config.stages[0].steps=2"]
  assert main(["train", "--config", str(config), "--workdir", str(folder),
               *SMALL, *steps]) == 0
  return folder


def test_convert_writes_what_transformers_reads(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
  capfd.readouterr()
  (tmp_path / "README.md").write_text("a card")
  assert main(["convert", "export", str(run), str(tmp_path), "--json"]) == 0
  said = json.loads(capfd.readouterr().out)
  assert said.pop("said")
  assert said == json.loads((tmp_path / "manifest.json").read_text())
  assert len(said["images"]) > 3000 and said["steps"] == 2
  assert all(len(digest) == 64 and origin.startswith("easy_vqa/train/")
             for digest, origin in said["images"].items())
  _, info = transformers.CLIPModel.from_pretrained(
      tmp_path, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  tower = load_tower(tmp_path)
  assert tower.config.mean == (0.9,) * 3 and tower.config.std == (1.0,) * 3
  assert tower.config.patches == 16
  assert (tmp_path / "README.md").read_text() == "a card"


def test_what_is_no_run_is_refused(tmp_path: Path, capsys) -> None:
  assert main(["convert", "export", str(tmp_path),
               str(tmp_path / "out")]) == 2
  assert "no run in" in capsys.readouterr().err
