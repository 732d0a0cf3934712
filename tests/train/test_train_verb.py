"""`align-jax train` on a tiny model with the real data pipeline."""

import json
from pathlib import Path

import numpy as np
import pytest

from align_jax.cli.main import main
from align_jax.errors import InputError
from align_jax.train.restore import restore
from align_jax.train.select import flatten
from tests.train import tiny_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
  folder = tmp_path_factory.mktemp("tiny")
  tiny_run.make(folder)
  return folder


def losses(workdir: Path) -> list[float]:
  return [json.loads(line)["loss"] for line in
          (workdir / "metrics.jsonl").read_text().splitlines()]


def train(folder: Path, workdir: Path, *more: str) -> int:
  return main(["train", "--config", str(folder / "tiny_config.py"),
               "--workdir", str(workdir), *more])


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
  assert train(folder, folder / "run") == 0
  return folder / "run"


def test_prints_one_json_object(folder, run, capsys):
  capsys.readouterr()
  assert train(folder, run, "--json") == 0
  result = json.loads(capsys.readouterr().out)
  assert result["finished"] and result["steps"] == 10 and result["resumed"]


def test_says_that_it_is_finished(folder, run, capsys):
  assert train(folder, run) == 0
  out = capsys.readouterr().out.splitlines()
  assert out[0].startswith("this run is finished already")
  assert out[1].startswith("trained tiny: 10 steps in ")


def test_a_run_is_restored(run):
  found = restore(run)
  assert found.step == 10 and found.finished and found.stage == "align"
  flat = flatten(found.params)
  assert flat["decoder/embed_vd"].dtype == np.dtype("bfloat16")
  assert flat["connector/in_cf"].dtype == np.float32
  moved = json.loads((run / "audit" / "0.json").read_text())["moved"]
  assert any(p.startswith("decoder/layers[1:2]/") for p in moved)


def test_a_folder_without_a_run(tmp_path):
  with pytest.raises(InputError, match="no run in"):
    restore(tmp_path)


def test_resumed_with_the_real_pipeline(folder, run, tmp_path, monkeypatch):
  """Stopped after step 6, resumed: same losses as the run never stopped."""
  from align_jax.train.stop import Stop
  with monkeypatch.context() as patch:
    patch.setattr(Stop, "requested", lambda self, step: step == 6)
    assert train(folder, tmp_path / "run") == 1
  assert train(folder, tmp_path / "run") == 0
  assert losses(tmp_path / "run") == losses(run)
  a, b = flatten(restore(run).params), flatten(restore(tmp_path / "run").params)
  for path in a:
    np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def test_one_compilation_over_a_hundred_mixed_batches(folder, tmp_path):
  """Text-only rows, rows with one image, rows with several."""
  assert train(folder, tmp_path, "--config.stages[0].steps=100",
               "--config.log_every=50", "--config.save_every=100") == 0
  result = json.loads((tmp_path / "result.json").read_text())
  assert result["compilations"] == {"align": 1}
  assert result["loss"] < losses(tmp_path)[0]


def test_errors_are_one_message(folder, tmp_path, capsys):
  assert train(folder, tmp_path, "--config.data.row=3",
               "--config.stages[0].train={'conector/*': 1.0}") == 2
  err = capsys.readouterr().err
  assert "Traceback" not in err and "has 2 faults" in err
  assert "data.row: unknown field; did you mean 'rows'?" in err
  assert train(folder, tmp_path / "b",
               "--config.stages[0].train={'connector/w9*': 1.0}") == 2
  err = capsys.readouterr().err
  assert "Traceback" not in err and "names no parameter" in err


def test_unknown_verb(capsys):
  assert main(["trian"]) == 2
  assert "did you mean 'train'" in capsys.readouterr().err


def test_help(capsys):
  assert main(["--help"]) == 0
  assert "align-jax VERB --help" in capsys.readouterr().out
  with pytest.raises(SystemExit) as left:
    main(["train", "--help"])
  assert left.value.code == 0
  assert "Ctrl-C saves and stops" in capsys.readouterr().out
