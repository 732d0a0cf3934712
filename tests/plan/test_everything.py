"""The shipped configs, and the table of all of them."""

import json
from pathlib import Path

import pytest

from align_jax.cli.main import main
from align_jax.config import load_config
from align_jax.parallel import topology
from align_jax.plan import everything
from align_jax.plan.check import check
from align_jax.validate import validate

CONFIGS = Path(__file__).parents[2] / "configs"
SPECS = everything.specs(CONFIGS)


def test_all_but_the_mini_configs_are_planned():
  names = [Path(s.split(":")[0]).relative_to(CONFIGS).as_posix()
           for s in SPECS]
  assert "quickstart.py" in names and "scale/llama31_8b_long.py" in names
  assert names.count("scale/llama31_70b.py") == 2  # one a connector
  assert not any(name.startswith("mini/") for name in names)


@pytest.mark.parametrize("spec", SPECS)
def test_every_config_names_a_topology_that_its_mesh_fits(spec):
  from align_jax.build import build

  config = validate(load_config(spec), spec)
  count = topology.size(config.plan.topology)
  check(config, build(config.model), count)  # raises where it does not


def test_the_smallest_is_compiled_as_shipped(capfd):
  code = main(["plan", "--config", "quickstart", "--json"])
  plan = json.loads(capfd.readouterr().out)
  stage = plan["stages"]["align"]
  assert code == 0 and plan["fits"]
  assert stage["parameters"] == 135_617_600
  assert stage["trainable_parameters"] == 406_656
  assert stage["devices"] == 1 and stage["collectives"] == []
  assert everything.row("quickstart", stage)[1]
  assert [g for g, v in stage["goals"].items() if v["met"]] == ["T1"]


def _stage(**changed):
  goals = {g: {"met": True, "text": "fine", "reason": ""}
           for g in everything.GOALS}
  return dict(stage="all", topology="v5e:4x4", parameters=10 ** 9,
              used_bytes=2 ** 30, spare_share=0.5, mfu_ceiling=0.6,
              fits=True, goals=goals) | changed


def test_a_miss_without_a_reason_fails_and_one_with_a_reason_does_not():
  assert everything.row("a", _stage())[1]
  missed = _stage()
  missed["goals"] = missed["goals"] | {
      "T3": {"met": False, "text": "1.3", "reason": ""}}
  cells, well = everything.row("a", missed)
  assert not well and "MISSED" in cells
  missed["goals"]["T3"]["reason"] = "the tables are small"
  cells, well = everything.row("a", missed)
  assert well and "said" in cells
  assert not everything.row("a", _stage(fits=False))[1]


def test_the_table_keeps_its_columns():
  lines = everything.table([everything.row("a", _stage())[0],
                            everything.row("longer", _stage())[0]])
  assert len({line.index("all") for line in lines.splitlines()[1:]}) == 1
