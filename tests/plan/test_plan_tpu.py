"""Plans for TPU slices that are absent: minutes of compiling each."""

import json
import shlex

import jax
import pytest

from align_jax.cli.main import main

CONFIG = '''
def get_config(arg="llama31_8b"):
  return dict(
      name="all_trained",
      model=dict(tower=dict(published="siglip_so400m_384", layer=-2),
                 connector=dict(kind="mlp"), decoder=dict(published=arg)),
      mesh=dict(data=1, fsdp=-1),
      data=dict(sources=dict(a=dict(kind="llava", options=dict(path="a"))),
                rows=64, row_length=1024, images_per_row=1,
                labels_per_row=256),
      stages=[dict(name="all", steps=1000, train={"*": 1e-5})])
'''


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
  path = tmp_path_factory.mktemp("plan") / "all_trained.py"
  path.write_text(CONFIG)
  return str(path)


def _plan(capfd, *arguments: str) -> tuple[int, dict]:
  code = main(["plan", *arguments, "--json"])
  return code, json.loads(capfd.readouterr().out)


@pytest.fixture(autouse=True)
def the_precision_that_users_have():
  """The suite's "highest" is for comparing numbers; kernels refuse it of
  bf16."""
  with jax.default_matmul_precision("default"):
    yield


@pytest.mark.slow
def test_8b_all_trained_does_not_fit_four_v5e_and_the_advice_fits(
    config, capfd):
  code, plan = _plan(capfd, "--config", config, "--topology", "v5e:2x2")
  stage = plan["stages"]["all"]
  assert code == 1 and plan["fits"] is stage["fits"] is False
  assert "refusal" in stage and stage["seen_on"].startswith("v5p:")
  assert len(stage["largest_buffers"]) == 5
  assert stage["largest_buffers"][0]["bytes"] > 2 ** 30
  assert stage["used_bytes"] > stage["hbm_bytes"] and stage["spare_share"] < 0

  command = shlex.split(stage["advice"]["command"])
  assert command[:2] == ["align-jax", "plan"]
  code, plan = _plan(capfd, *command[2:])
  stage = plan["stages"]["all"]
  assert code == 0 and stage["fits"] and stage["spare_share"] >= 0.05


@pytest.mark.slow
def test_1b_on_sixteen_v5e_is_predicted_as_the_compiler_says(config, capfd):
  code, plan = _plan(capfd, "--config", f"{config}:llama32_1b",
                     "--topology", "v5e:4x4", "--config.data.rows=16")
  stage = plan["stages"]["all"]
  assert code == 0
  lying = sum(stage["predicted"][k]
              for k in ("parameters", "optimizer", "batch"))
  assert lying == pytest.approx(stage["argument_bytes"], rel=0.01)
  assert stage["predicted_bytes"] == pytest.approx(
      stage["peak_bytes"], rel=0.05)
  assert stage["peak_bytes"] <= stage["used_bytes"]
  assert stage["v_sized_collectives"] == 0
  assert stage["uncosted_calls"] == {} and stage["unknown_loops"] == 0
  assert stage["flops_compiled_over_analytic"] == pytest.approx(
      1 + stage["recomputed_share"] + stage["masked_share"], rel=0.03)
