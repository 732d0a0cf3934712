"""What is said where a stage does not fit; by prediction, nothing compiled."""

import json
import shlex

import pytest

from align_jax.build import build
from align_jax.cli.main import main
from align_jax.config import load_config
from align_jax.parallel import topology
from align_jax.plan import report
from align_jax.plan.advice import advise, buffers_elsewhere
from align_jax.plan.check import check, stage_named
from align_jax.plan.chips import CHIPS
from align_jax.plan.stage import Target, predicted
from align_jax.validate import validate
from tests.plan.test_plan_tpu import CONFIG


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
  path = tmp_path_factory.mktemp("advice") / "all_trained.py"
  path.write_text(CONFIG)
  return str(path)


@pytest.fixture
def no_compiler(monkeypatch):
  find = topology.importlib.util.find_spec
  monkeypatch.setattr(topology.importlib.util, "find_spec",
                      lambda name: None if name == "libtpu" else find(name))


def _where(name: str) -> Target:
  chip = CHIPS[topology.parse(name)[0]]
  return Target(name, topology.size(name), None, chip, chip.hbm)


def _plan(config, stage: str, where: Target) -> dict:
  one = stage_named(config, stage)
  axes = check(config, build(config.model), where.count)
  return predicted(config.of(one), one, where, axes)


@pytest.mark.parametrize("spec, given, stage, where", [
    # SEA's loss couples the samples of a batch: no microbatches.
    ("sea/llava15:llm=vicuna_7b", ["mesh.fsdp=-1"], "align", "v5e:2x2"),
    ("", [], "all", "v4:2x2x1"),
    ("", ["data.streams=4", "data.rows=20"], "all", "v5e:2x2"),
])
def test_what_is_advised_is_a_config_that_is_taken_and_predicted_to_fit(
    config, spec, given, stage, where):
  spec = spec or config
  before = validate(load_config(spec, given))
  found = advise(before, stage_named(before, stage), _where(where))
  moved = [f.split()[1] for f in found.flags if f.startswith("--topology")]
  flags = [f for f in found.flags if not f.startswith("--")]
  after = validate(load_config(spec, given + flags))  # raises, were it not
  plan = _plan(after, stage, _where((moved or [where])[0]))
  assert plan["fits"]
  assert plan["predicted_bytes"] / plan["hbm_bytes"] == pytest.approx(
      found.share)


def test_advice_learns_from_a_compiler_that_found_more(config):
  c = validate(load_config(config))
  near, far = (advise(c, c.stages[0], _where("v5e:2x2"), times)
               for times in (1.0, 3.0))
  assert near.flags != far.flags and near.share <= 0.85 and far.share <= 0.85
  moved = next(f.split()[1] for f in far.flags if f.startswith("--topology"))
  after = validate(load_config(config, [
      f for f in far.flags if not f.startswith("--")]))
  plan = _plan(after, "all", _where(moved))
  assert 3 * plan["predicted_bytes"] <= 0.85 * plan["hbm_bytes"]


def test_a_batch_that_advice_changes_is_said(config):
  told = {}
  for rows in (20, 64):
    c = validate(load_config(config, [f"data.rows={rows}"]))
    told[rows] = advise(c, c.stages[0], _where("v5e:2x2")).why
  assert told[20].endswith("and the batch from 20 to 32 rows")
  assert "batch" not in told[64]


def test_the_advised_command_repeats_what_was_given_and_fits(
    config, no_compiler, capsys):
  given = ["--stage", "all", "--config.data.row_length=512",
           "--config.mesh.fsdp=4"]
  code = main(["plan", "--config", config, "--topology", "v5e:2x2", *given,
               "--json"])
  stage = json.loads(capsys.readouterr().out)["stages"]["all"]
  command = stage["advice"]["command"]
  assert code == 1 and "--stage all" in command
  assert "--config.data.row_length=512" in command
  assert command.index("mesh.fsdp=4") < command.rindex("mesh.fsdp=16")
  code = main([*shlex.split(command)[1:], "--json"])
  after = json.loads(capsys.readouterr().out)["stages"]["all"]
  assert code == 0 and after["fits"] and after["mesh"]["fsdp"] == 16
  assert after["tokens"] == stage["tokens"]


def test_without_a_compiler_the_largest_buffers_are_the_predicted_ones(
    config, no_compiler, capsys):
  code = main(["plan", "--config", config, "--topology", "v5e:2x2"])
  out = capsys.readouterr().out
  assert code == 1
  assert "predicted, since there is no compiler for these devices:" in out
  named = out.split("its largest buffers")[1].splitlines()[1:6]
  assert all("GiB" in line for line in named)
  assert "temporary: all that lives at the fullest moment" in named[0]
  assert any("optimizer: " in line for line in named)


def test_a_chip_with_the_most_memory_that_refuses_has_them_predicted(config):
  c, where = validate(load_config(config)), _where("v5p:2x2x1")
  assert buffers_elsewhere(c, c.stages[0], where) == {}  # none has more
  plan = _plan(c, "all", where)
  assert len(plan["largest_buffers"]) == 5 and plan["seen_on"] is None
  sizes = [b["bytes"] for b in plan["largest_buffers"]]
  assert sizes == sorted(sizes, reverse=True)
  told = report.text(
      {"name": "all_trained", "stages": {
          "all": plan | {"fits": False, "refusal": "RESOURCE_EXHAUSTED"}}},
      {"all": {}}, {})
  assert "since no chip that it can be compiled for has the memory" in told


@pytest.mark.parametrize("spec, given, said", [
    ("", [], None),
    ("", ["model.connector.kind=qformer"], "connector 'qformer' keeps"),
    ("", ["model.connector.kind=qformer", "stages[0].train={'decoder/*': 1}"],
     None),  # no gradient reaches it
    ("sam/instructblip_vicuna_7b:connector=vpg_c", [], "up to 9 GB"),
])
def test_a_prediction_alone_says_what_it_leaves_out(config, spec, given, said):
  c = validate(load_config(spec or config, given))
  stage = c.stages[0].name
  plan = _plan(c, stage, _where("v5e:2x4")) | {"fits": True}
  told = report.text({"name": c.name, "stages": {stage: plan}}, {stage: {}},
                     c.plan.misses)
  assert ("may miss" in told) == bool(said)
  assert (said or "") in told
