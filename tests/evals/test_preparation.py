"""What cells share is made once, and anew where anything before it changed."""

import json
from pathlib import Path

import pytest

from align_jax.evals import cells, study
from align_jax.evals.preparation import Preparation, placed, prepare
from tests.evals.test_study import _Runner, _study


class _Maker:
  """Notes what it is told to run."""

  def __init__(self):
    self.calls = []

  def __call__(self, command: list[str]) -> str:
    self.calls.append(" ".join(command))
    return ""


def _two(config: Path, more: str = "") -> tuple[Preparation, ...]:
  return (Preparation("lm", (("train", "--config", f"{config}:x",
                              "--workdir", "{work}/prepared/lm/run"),)),
          Preparation("labels", (("label", "--out", "{work}/l", more),)))


@pytest.fixture
def config(tmp_path) -> Path:
  file = tmp_path / "own.py"
  file.write_text("def get_config(arg):\n  return {'seed': 1}")
  return file


def test_each_is_made_once(tmp_path, config):
  maker = _Maker()
  first = prepare(_two(config), tmp_path, maker)
  assert maker.calls == [
      f"align-jax train --config {config}:x --workdir "
      f"{tmp_path}/prepared/lm/run", f"align-jax label --out {tmp_path}/l "]
  assert prepare(_two(config), tmp_path, maker) == first
  assert len(maker.calls) == 2


def test_a_change_remakes_it_and_what_stands_on_it(tmp_path, config):
  maker, told = _Maker(), []
  first = prepare(_two(config), tmp_path, maker)
  prepare(_two(config, "--n"), tmp_path, maker, told.append)
  assert len(maker.calls) == 3 and "labels was made otherwise" in told[0]
  config.write_text("def get_config(arg):\n  return {'seed': 2}")
  assert prepare(_two(config, "--n"), tmp_path, maker) != first
  assert len(maker.calls) == 5
  # What was there is kept.
  assert len(list((tmp_path / "prepared").glob("labels.*"))) == 2


def test_a_preparation_that_was_killed_is_made_again(tmp_path, config):
  def killed(command):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    prepare(_two(config), tmp_path, killed)
  maker = _Maker()
  prepare(_two(config), tmp_path, maker)
  assert len(maker.calls) == 2


def test_the_folder_is_named_everywhere(tmp_path):
  value = {"a": ["{work}/x", 1], "b": ("{work}", None)}
  assert placed(value, Path("w")) == {"a": ["w/x", 1], "b": ("w", None)}


def test_cells_read_what_was_prepared(tmp_path, config):
  plan = _study((0,), prepare=_two(config))
  for cell in plan.cells.values():
    cell.overrides["data.features"] = "{work}/prepared/f"
  runner = _Runner(tmp_path, lambda arm, seed: 0.8)

  class Both(_Maker):
    def __call__(self, command):
      super().__call__(command)
      return runner(command) if command[1] in ("train", "evaluate") else ""

  both, work = Both(), tmp_path / "work"
  run = lambda: study.run_study(plan, work, tmp_path / "results", runner=both)
  run()
  assert [c.split()[1] for c in both.calls] == [
      "train", "label", "train", "evaluate", "train", "evaluate"]
  assert f"--config.data.features={work}/prepared/f" in both.calls[2]
  run()
  assert len(both.calls) == 6
  # Other preparations make other cells.
  config.write_text("def get_config(arg):\n  return {'seed': 2}")
  run()
  assert len(both.calls) == 12


def test_what_is_prepared_may_be_run_by_another(tmp_path, config):
  plan = _study((0,), prepare=_two(config))
  maker, runner = _Maker(), _Runner(tmp_path, lambda arm, seed: 0.8)
  study.run_study(plan, tmp_path / "work", tmp_path / "results",
                  runner=runner, preparer=maker)
  assert [c.split()[1] for c in maker.calls] == ["train", "label"]
  assert [c[1] for c in runner.calls] == ["train", "evaluate"] * 2


@pytest.mark.parametrize("reached, counts", ((0.29, False), (0.31, True)))
def test_a_teacher_near_chance_can_test_nothing(tmp_path, reached, counts):
  plan = _study(testable=("hits", "chance"))
  runner = _Runner(tmp_path, lambda arm, seed: 0.7 + 0.1 * (arm == "align"))

  def judged(command):
    said = runner(command)
    if command[1] != "evaluate":
      return said
    return json.dumps(json.loads(said) | {"hits": reached, "chance": 0.1})

  found = study.run_study(plan, tmp_path / "work", tmp_path / "results",
                          runner=judged)["contrast"]
  assert found["counts"] == counts
  assert ("hits is 29.0 %, below three times chance (10.0 %)"
          in found["verdict"]) != counts


def test_a_cell_that_shares_nothing_keeps_its_signature():
  cell = _study((0,)).cells["mlp-0"]
  assert cells.signature(cell) != cells.signature(
      cells.dataclasses.replace(cell, prepared="x"))


def test_stages_are_summed_up_from_the_log(tmp_path):
  log = tmp_path / "metrics.jsonl"
  log.write_text(
      '{"stage": "a", "step": 1, "weight/sea": 80}\n'
      '{"stage": "a", "step": 2, "step_seconds": 2, "weight/sea": 60}\n'
      '{"stage": "b", "step": 3, "step_seconds": 1}\n')
  assert cells.by_stage(log) == {
      "a": {"weight_sea": 70, "step_seconds": 2}, "b": {"step_seconds": 1}}
  assert cells.by_stage(tmp_path / "none") == {}
