"""Studies: cells resume, rules decide, tables follow from the results."""

import contextlib
import dataclasses
import json
import shutil
import threading
from pathlib import Path

import pytest

from align_jax.cli import study as verb
from align_jax.cli.main import main
from align_jax.config import config_names, find_config
from align_jax.errors import InputError
from align_jax.evals import cells, contrast, study, tables
from align_jax.evals.study import Cell, Column, Study, Tuning

ROOT = Path(__file__).parents[2]


def _study(seeds=(0, 1, 2), **kw) -> Study:
  cells = {f"{arm}-{seed}": Cell(arm, f"quickstart:connector={arm}", seed,
                                 {"stages[0].steps": 4},
                                 {"limit": 9, "noise": [0.5, 1.0]})
           for arm in ("mlp", "align") for seed in seeds}
  return Study(
      name="toy", question="which?", primary=("align", "mlp"), cells=cells,
      columns=(Column("Steps", "train/steps", "count"),
               Column("Accuracy", "accuracy", "percent", "ci95"),
               Column("Noise 0.5", "noise/0.5")),
      notes=("Made-up data.",), **kw)


class _Runner:
  """Answers command lines as `align-jax` would, without running anything."""

  def __init__(self, tmp_path, accuracy):
    self.calls, self.accuracy, self.tmp_path = [], accuracy, tmp_path

  def __call__(self, command: list[str]) -> str:
    self.calls.append(command)
    print("what a library says")
    if command[1] == "train":
      return "trained\n"
    arm, seed = command[2].split("/")[-2].split("-", 1)
    accuracy = self.accuracy(arm, float(seed))
    samples = self.tmp_path / f"{arm}-{seed}.jsonl"
    right = round(accuracy * 200)
    samples.write_text("".join(
        json.dumps({"image": i // 2, "right": i < right}) + "\n"
        for i in range(200)))
    return json.dumps({
        "accuracy": accuracy, "ci95": [accuracy - .05, accuracy + .05],
        "question_prior_accuracy": 0.5, "noise": {"0.5": accuracy - 0.1},
        "train": {"steps": 1250, "commit": "decade"}, "commit": "c0ffee",
        "device": "cpu", "versions": {"jax": "0"}, "samples": str(samples)})


def _run(tmp_path, accuracy, seeds=(0, 1, 2), cells="*", jobs=1, **kw):
  runner = _Runner(tmp_path, accuracy)
  results = study.run_study(_study(seeds, **kw), tmp_path / "work",
                            tmp_path / "results", cells,
                            "align-jax study toy.py", runner=runner,
                            jobs=jobs)
  return results, runner


def test_commands_are_what_a_person_would_type(tmp_path):
  train, evaluate = cells.commands(_study().cells["mlp-1"], tmp_path)
  assert " ".join(train) == (
      "align-jax train --config quickstart:connector=mlp --workdir "
      f"{tmp_path} --config.seed=1 --config.stages[0].steps=4")
  assert " ".join(evaluate) == (
      f"align-jax evaluate {tmp_path} --json --limit 9 --noise 0.5 "
      "--noise 1.0")
  flag = dataclasses.replace(_study().cells["mlp-1"],
                             evaluate={"no_blind": True, "scoring": "both"})
  assert cells.commands(flag, tmp_path)[1][3:] == [
      "--json", "--no-blind", "--scoring", "both"]


def test_a_difference(tmp_path):
  results, _ = _run(tmp_path, lambda arm, seed: (
      0.8 if arm == "align" else 0.7) + 0.01 * seed * (arm == "mlp"))
  got = results["contrast"]
  assert got["counts"] and got["seeds"] == [0, 1, 2]
  assert got["difference"] == pytest.approx(0.09)
  assert got["verdict"].startswith(
      "align is better than mlp: align less mlp is 9.0 points, t-interval "
      "over 3 seeds [6.5, 11.5]")
  assert got["images95"][0] < 0.09 < got["images95"][1]


def test_no_difference_seen(tmp_path):
  results, _ = _run(tmp_path, lambda arm, seed: 0.8 + 0.01 * (
      seed if arm == "align" else 2 - seed))
  verdict = results["contrast"]["verdict"]
  assert verdict.startswith("no difference seen between align and mlp")
  assert "would have been seen four times in five" in verdict


@pytest.mark.parametrize("accuracy, reason", [
    (lambda arm, seed: 0.6, "no arm stands 15 points above"),
    (lambda arm, seed: 0.99 if arm == "mlp" else 0.8, "mlp is above 97 %"),
])
def test_inconclusive(tmp_path, accuracy, reason: str):
  results, _ = _run(tmp_path, accuracy)
  assert not results["contrast"]["counts"]
  assert results["contrast"]["verdict"].startswith("inconclusive: ")
  assert reason in results["contrast"]["verdict"]


def test_one_seed_claims_nothing_about_seeds(tmp_path):
  results, _ = _run(tmp_path, lambda arm, seed: (
      0.8 if arm == "align" else 0.7), seeds=(0,))
  assert results["contrast"]["verdict"].startswith(
      "one seed: align less mlp is 10.0 points; redrawing images")
  assert results["contrast"]["verdict"].endswith("unknown")
  assert results["contrast"]["t95"] is None


def test_cells_resume_one_by_one(tmp_path):
  accuracy = lambda arm, seed: 0.8 if arm == "align" else 0.7
  results, runner = _run(tmp_path, accuracy, cells="mlp-*")
  assert len(runner.calls) == 6
  assert set(results["cells"]) == {"mlp-0", "mlp-1", "mlp-2"}
  assert results["contrast"]["verdict"].startswith("unfinished")
  # Killed between two cells: what is done is not done again.
  (tmp_path / "work" / "cells" / "mlp-1" / "cell.json").unlink()
  results, runner = _run(tmp_path, accuracy)
  assert [c[1] for c in runner.calls] == ["train", "evaluate"] * 4
  assert list(results["cells"]) == list(_study().cells)
  # Results made elsewhere stay, without their runs.
  shutil.rmtree(tmp_path / "work")
  results, runner = _run(tmp_path, accuracy, cells="mlp-0")
  assert len(runner.calls) == 2 and len(results["cells"]) == 6


RATE = "stages[0].train.connector/*"
TUNING = Tuning(rates=(1e-2, 1e-3, 1e-4), field=RATE, overrides={
    "data.sources.train.options.split": "train[:90%]",
    "eval.options.split": "train[90%:]"})


def test_each_arm_finds_its_learning_rate_on_what_is_not_reported(tmp_path):
  # The fake runner takes what follows the arm in the folder's name for a
  # seed: 0 to 2 for cells, the rate for tuning.
  best = {"mlp": 1e-3, "align": 1e-2}
  accuracy = lambda arm, x: 0.8 if x in (0, 1, 2) else 0.7 - abs(
      x - best[arm])
  results, runner = _run(tmp_path, accuracy, tuning=TUNING)
  assert {a: t["rate"] for a, t in results["tuning"].items()} == best
  assert results["tuning"]["mlp"]["scores"]["0.001"] == pytest.approx(0.7)
  trained = [" ".join(c) for c in runner.calls if c[1] == "train"]
  tried, reported = trained[:6], trained[6:]
  assert len(tried) == len(reported) == 6
  for line in tried:
    assert "--config.eval.options.split=train[90%:]" in line
    assert "--config.seed=0" in line
  for line in reported:
    assert "split" not in line
    assert f"{RATE}={0.001 if '=mlp' in line else 0.01}" in line
  assert ("mlp 0.001; align 0.01, the highest tried."
          in tables.table(results))
  # What was tried and run is not run again.
  again, runner = _run(tmp_path, accuracy, tuning=TUNING)
  assert runner.calls == [] and again == results


def test_an_arm_may_run_at_anothers_rate(tmp_path):
  like = dataclasses.replace(TUNING, like={"align": "mlp"},
                             evaluate={"no_blind": True})
  _, runner = _run(tmp_path, lambda arm, x: 0.7, tuning=like)
  trained = [" ".join(c) for c in runner.calls if c[1] == "train"]
  tried, reported = trained[:3], trained[3:]
  assert all("=mlp" in line for line in tried) and len(reported) == 6
  assert all(f"{RATE}=0.0001" in line for line in reported)
  asked = [c for c in runner.calls if c[1] == "evaluate"]
  assert all(c[-1] == "--no-blind" for c in asked[:3])
  assert not any("--no-blind" in c for c in asked[3:])
  with pytest.raises(InputError, match="no rate is tried for"):
    _study(tuning=dataclasses.replace(TUNING, like={"mlp": "alien"}))


def test_two_at_a_time_is_the_same_study(tmp_path):
  accuracy = lambda arm, x: 0.8 if x in (0, 1, 2) else 0.7 - abs(x - 1e-3)
  one, _ = _run(tmp_path / "one", accuracy, tuning=TUNING)
  two, runner = _run(tmp_path / "two", accuracy, tuning=TUNING, jobs=2)
  strip = lambda results: json.dumps(results).replace(
      str(tmp_path / "one"), str(tmp_path / "two"))
  assert json.loads(strip(one)) == two
  # Every rate is tried before any cell runs.
  tried = ["tuning" in " ".join(c) for c in runner.calls if c[1] == "train"]
  assert tried == [True] * 6 + [False] * 6


def test_runs_at_a_time_are_as_many_as_asked_for(tmp_path):
  meeting = threading.Barrier(2, timeout=30)
  runner = _Runner(tmp_path, lambda arm, seed: 0.8)

  def both(command):
    if command[1] == "train":
      meeting.wait()  # passes two at a time or never
    return runner(command)

  results = study.run_study(_study((0, 1)), tmp_path / "work",
                            tmp_path / "results", runner=both, jobs=2)
  assert len(results["cells"]) == 4


def test_the_first_failure_ends_the_study_and_loses_no_cell(tmp_path):
  runner = _Runner(tmp_path, lambda arm, seed: 0.8)

  def failing(command):
    if "align" in command[2]:
      raise RuntimeError("no memory")
    return runner(command)

  with pytest.raises(RuntimeError, match="no memory"):
    study.run_study(_study((0,)), tmp_path / "work", tmp_path / "results",
                    runner=failing)
  file = tmp_path / "results" / "toy.json"
  assert list(json.loads(file.read_text())["cells"]) == ["mlp-0"]
  assert not (tmp_path / "work/cells/align-0/cell.json").exists()


def test_two_processes_share_a_study(tmp_path):
  """Cells that another process has written meanwhile are kept."""
  accuracy = lambda arm, seed: 0.8
  runner = _Runner(tmp_path, accuracy)

  def meanwhile(command):
    if command[1] == "train" and "mlp-1" in " ".join(command):
      _run(tmp_path, accuracy, cells="align-0")
    return runner(command)

  results = study.run_study(_study(), tmp_path / "work", tmp_path / "results",
                            "mlp-1", runner=meanwhile)
  assert list(results["cells"]) == ["mlp-1", "align-0"]


def test_a_cell_is_in_the_hands_of_one_process(tmp_path):
  told, order = [], []
  begun, proceed = threading.Event(), threading.Event()
  runner = _Runner(tmp_path, lambda arm, seed: 0.8)
  cell = _study((0,)).cells["mlp-0"]

  def slowly(command):
    begun.set()
    proceed.wait(30)
    return runner(command)

  def run(who, runner, progress=lambda line: None):
    cells.run_cell(cell, tmp_path / "mlp-0", runner, progress)
    order.append(who)

  first = threading.Thread(target=run, args=("first", slowly))
  first.start()
  begun.wait(30)
  second = threading.Thread(target=run, args=("second", None, told.append))
  second.start()
  while not told and second.is_alive():
    second.join(0.01)
  assert order == [] and "in the hands of another process" in told[0]
  proceed.set()
  first.join()
  second.join()  # it finds the cell done, and so needs no runner
  assert sorted(order) == ["first", "second"] and len(runner.calls) == 2


def test_tuning_may_not_look_at_what_is_reported():
  with pytest.raises(InputError, match="choose by what is reported"):
    _study(tuning=Tuning((1e-3,), RATE, {}))


def test_unfinished_names_what_is_missing(tmp_path):
  results, _ = _run(tmp_path, lambda arm, seed: 0.8, cells="*-0")
  assert results["contrast"]["verdict"] == (
      "unfinished: mlp-1, mlp-2, align-1, align-2 not run")


def _run_again(tmp_path, changed: Study, cells="*"):
  """Runs it where it was run before: (results, commands, what was told)."""
  runner, told = _Runner(tmp_path, lambda *_: 0.8), []
  results = study.run_study(changed, tmp_path / "work", tmp_path / "results",
                            cells, runner=runner, progress=told.append)
  return results, runner.calls, "\n".join(told)


def test_a_changed_cell_is_run_anew(tmp_path):
  _run(tmp_path, lambda arm, seed: 0.8, seeds=(0,))
  changed = _study((0,))
  changed.cells["mlp-0"].overrides["stages[0].steps"] = 5
  results, _, told = _run_again(tmp_path, changed, cells="align-*")
  assert "cell mlp-0 in" in told and list(results["cells"]) == ["align-0"]
  results, calls, told = _run_again(tmp_path, changed)
  assert "cell mlp-0 was run with other settings" in told
  assert [c[1] for c in calls] == ["train", "evaluate"]
  assert list(results["cells"]) == ["mlp-0", "align-0"]
  # What was done before is moved aside, not lost.
  assert len(list((tmp_path / "work" / "cells").glob("mlp-0*/cell.json"))) == 2


def test_editing_a_config_changes_its_cells_alone(tmp_path):
  file = tmp_path / "own.py"
  file.write_text("def get_config():\n  return {'stages': [{'warmup': 0.1}]}")
  plan = _study((0,))
  plan.cells["mlp-0"] = dataclasses.replace(
      plan.cells["mlp-0"], config=str(file))
  _run_again(tmp_path, plan)
  assert _run_again(tmp_path, plan)[1] == []
  file.write_text("def get_config():\n  return {'stages': [{'warmup': 0.2}]}")
  _, calls, told = _run_again(tmp_path, plan)
  assert [c[1] for c in calls] == ["train", "evaluate"]
  assert "mlp-0 was run with other settings" in told
  assert "align-0 was run" not in told


def test_further_looks_at_a_run_stand_among_its_figures(tmp_path):
  plan = _study((0,), tuning=TUNING)
  plan.cells["mlp-0"] = dataclasses.replace(plan.cells["mlp-0"], more={
      "noise_outputs": ("inspect", "noise", "{run}", "--images", "9")})
  runner = _Runner(tmp_path, lambda arm, seed: 0.8)

  def looks(command):
    if command[1] == "inspect":
      runner.calls.append(command)
      return json.dumps({"spread": 2.0})
    return runner(command)

  found = study.run_study(plan, tmp_path / "work", tmp_path / "results",
                          runner=looks)["cells"]["mlp-0"]
  assert found["figures"]["noise_outputs"] == {"spread": 2.0}
  run = tmp_path / "work/cells/mlp-0/run"
  assert found["commands"][2] == (
      f"align-jax inspect noise {run} --images 9 --json")
  # Of the cell that is reported alone, not of those that try a rate.
  assert sum(c[1] == "inspect" for c in runner.calls) == 1
  bare = dataclasses.replace(plan.cells["mlp-0"], more={})
  assert cells.signature(bare) != found["signature"]


def test_a_record_says_which_code_made_it(tmp_path):
  results, _ = _run(tmp_path, lambda arm, seed: 0.8, seeds=(0,))
  record = results["cells"]["mlp-0"]
  assert (record["train_commit"], record["commit"]) == ("decade", "c0ffee")


def test_exploratory_cells_have_no_part_in_the_contrast(tmp_path):
  accuracy = lambda arm, seed: {"wild": 0.99, "align": 0.8}.get(arm, 0.7)
  alone, _ = _run(tmp_path / "alone", accuracy)
  plan = _study()
  # The same arm and seed as a primary cell, and an arm of its own.
  for name, arm in (("wild-0", "mlp"), ("wild-1", "other")):
    plan.cells[name] = Cell(arm, "quickstart", 0, exploratory=True)
  runner = _Runner(tmp_path, accuracy)
  results = study.run_study(plan, tmp_path / "work", tmp_path / "results",
                            "*[!d]-?", runner=runner)
  assert len(results["cells"]) == 6
  assert results["contrast"] == alone["contrast"]  # not "unfinished"
  results = study.run_study(plan, tmp_path / "work", tmp_path / "results",
                            runner=runner)
  assert len(results["cells"]) == 8
  assert results["contrast"] == alone["contrast"]
  rows = [line.split(" | ")[::2] for line in
          tables.table(results).splitlines()[2:6]]
  assert [(r[0], r[1][:4]) for r in rows] == [
      ("| mlp", "70.0"), ("| align", "80.0"),
      ("| mlp (exploratory)", "99.0"), ("| other (exploratory)", "99.0")]


def test_faults_of_a_study_are_listed_together():
  with pytest.raises(InputError) as error:
    Study("bad", "?", ("align", "mlp"),
          {"a b": Cell("mlp", "c"), "c": Cell("mlp", "c"),
           "d": Cell("align", "c", exploratory=True)}, ())
  assert str(error.value) == (
      "study 'bad': primary arm 'align' has no cell that is not exploratory; "
      "cell name 'a b' is no plain file name; "
      "cells 'a b' and 'c' are the same arm and seed")


def test_no_such_cells_or_file(tmp_path):
  with pytest.raises(InputError, match="no cell of toy matches 'x'"):
    _run(tmp_path, lambda *_: 1, cells="x")
  with pytest.raises(InputError, match="no study '.*none.py': neither"):
    study.load_study(tmp_path / "none.py")
  (tmp_path / "empty.py").write_text("")
  with pytest.raises(InputError, match=r"has no get_study\(\)"):
    study.load_study(tmp_path / "empty.py")


def test_table(tmp_path):
  results, _ = _run(tmp_path, lambda arm, seed: (
      0.8 if arm == "align" else 0.7) + 0.01 * seed)
  lines = tables.table(results).splitlines()
  assert lines[:4] == [
      "| connector | Steps | Accuracy | Noise 0.5 |",
      "| --- | ---: | ---: | ---: |",
      "| mlp | 1,250 | 71.0 ± 2.5 % | 61.0 ± 2.5 % |",
      "| align | 1,250 | 81.0 ± 2.5 % | 71.0 ± 2.5 % |"]
  text = "\n".join(lines)
  assert "not comparable with the paper's numbers" in text
  assert "Seeds 0, 1, 2; cpu; commit c0ffee, decade." in text
  assert "Command: `align-jax study toy.py`." in text


def test_one_seed_shows_the_interval_over_images(tmp_path):
  results, _ = _run(tmp_path, lambda arm, seed: 0.8, seeds=(0,))
  assert "| 80.0 % [75.0, 85.0] |" in tables.table(results)


def test_readme_is_filled_and_checked(tmp_path):
  _run(tmp_path, lambda arm, seed: 0.8)
  readme = "# A\n<!-- results: toy -->\nby hand\n<!-- end -->\nmore\n"
  assert tables.differing(readme, tmp_path / "results") == ["toy"]
  filled = tables.fill(readme, tmp_path / "results")
  assert filled.startswith("# A\n<!-- results: toy -->\n| connector |")
  assert filled.endswith("<!-- end -->\nmore\n")
  assert tables.differing(filled, tmp_path / "results") == []
  with pytest.raises(InputError, match="run its study first"):
    tables.fill(readme.replace("toy", "other"), tmp_path / "results")
  still_to_run = "<!-- results: other -->\n<!-- end -->"
  assert tables.fill(still_to_run, tmp_path / "results") == still_to_run


def test_the_readme_shows_what_the_results_say():
  text = (ROOT / "README.md").read_text(encoding="utf-8")
  assert tables.differing(text, ROOT / "results") == []


@pytest.mark.parametrize("file", sorted(
    str(p.relative_to(ROOT)) for p in ROOT.glob("configs/**/study_*.py")))
def test_shipped_studies_can_be_read(file: str):
  loaded = study.load_study(ROOT / file)
  for cell in loaded.cells.values():
    find_config(cell.config.partition(":")[0])


def test_shipped_studies_are_found_by_name():
  assert "mini/study_connectors" in config_names("study")
  assert "mini/study_connectors" not in config_names()
  assert study.load_study("mini/study_connectors").name == (
      "quickstart_connectors")
  with pytest.raises(InputError, match="did you mean 'mini/study_connectors'"):
    study.load_study("mini/study_connector")


def test_verb(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  runner = _Runner(tmp_path, lambda arm, seed: 0.8)
  (tmp_path / "toy.py").write_text(
      "from tests.evals.test_study import _study\n"
      "get_study = lambda: _study((0,))\n")
  (tmp_path / "R.md").write_text("<!-- results: toy -->\n<!-- end -->\n")
  monkeypatch.setattr(verb, "Workers",
                      lambda jobs, workdir: contextlib.nullcontext(runner))
  assert main(["study", "toy.py", "--table"]) == 2
  assert main(["study", "toy.py"]) == 2
  assert "give --workdir" in capsys.readouterr().err
  assert main(["study", "toy.py", "--workdir", "w", "--readme", "R.md",
               "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert set(found["cells"]) == {"mlp-0", "align-0"}
  assert found == json.loads((tmp_path / "results/toy.json").read_text())
  assert main(["study", "toy.py", "--table"]) == 0
  table = capsys.readouterr().out
  assert table.startswith("| connector |")
  assert table in (tmp_path / "R.md").read_text()


def test_interval_over_images_needs_the_same_images(tmp_path):
  results, _ = _run(tmp_path, lambda arm, seed: 0.8)
  results["cells"]["mlp-0"]["by_image"]["image"][0] = 999
  assert contrast.contrast(results)["images95"] is None
