"""`align-jax plan`, from the command line, on eight virtual devices."""

import json

import pytest

from align_jax.cli.main import main
from align_jax.parallel import topology

# What a compiler alone tells.
COMPILED = ("used_bytes", "spare_share", "flops_compiled_over_analytic",
            "v_sized_collectives", "compile_seconds")

TINY = '''
def get_config(arg=""):
  return dict(
      name="tiny",
      model=dict(
          tower=dict(kind="siglip", config=dict(
              image_size=16, patch_size=8, width=16, layers=2, heads=2,
              mlp_width=32)),
          connector=dict(kind="mlp"),
          decoder=dict(kind="llama", config=dict(
              vocab_size=96, width=32, layers=2, heads=4, kv_heads=2,
              mlp_width=48)),
          dtype="float32"),
      mesh=dict(data=1, fsdp=4, tensor=2),
      data=dict(sources=dict(a=dict(kind="llava", options=dict(path="a"))),
                rows=8, row_length=16, images_per_row=1, labels_per_row=8),
      stages=[dict(name="connect", steps=10, train={"connector/*": 1e-3}),
              dict(name="all", steps=20, train={"*": 1e-4})],
      plan=dict(topology="cpu:8"))
'''


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
  path = tmp_path_factory.mktemp("plan") / "tiny.py"
  path.write_text(TINY)
  return str(path)


def _plan(capsys, *arguments: str) -> tuple[int, str, str]:
  code = main(["plan", *arguments])
  out = capsys.readouterr()
  return code, out.out, out.err


@pytest.fixture(scope="module")
def planned(config) -> dict:
  """The tiny config's second stage, compiled once for several tests."""
  from align_jax.config import load_config
  from align_jax.plan.whole import plan
  from align_jax.validate import validate

  result, _ = plan(validate(load_config(config)), stage="all")
  return result


def test_json_has_every_promised_field(planned):
  stage = planned["stages"]["all"]
  assert stage["fits"] is True and planned["fits"] is True
  for field in ("hbm_bytes", "parameters", "trainable_parameters", *COMPILED):
    assert isinstance(stage[field], int | float), field
  json.dumps(planned)


def test_predicted_bytes_are_the_compilers_own(planned):
  stage = planned["stages"]["all"]
  p = stage["predicted"]
  # Nothing of the state or of the batch is forgotten or counted twice; the
  # loop counters of optimizer and step are the only scalars.
  lying = p["parameters"] + p["optimizer"] + p["batch"]
  assert lying == stage["argument_bytes"]


def test_compiled_flops_are_those_counted_by_hand(planned):
  stage = planned["stages"]["all"]
  found = stage["compiled_flops_by_part"]
  # Attention's products are left out: at this size a processor's compiler
  # makes sums of them that are no products any more.
  t, d, f, v = 8 * 16, 32, 48, 96
  layer = 2 * t * (2 * d * d + 2 * d * 16 + 3 * d * f)
  # Forward, two gradients, and forward again but for the last product.
  assert found["decoder"] == 2 * (4 * layer - 2 * t * d * f)
  assert found["head"] == 3 * 2 * 8 * 8 * d * v
  c, n = 16, 8 * 4
  block = 2 * n * (4 * c * c + 2 * c * 32)
  stem = 2 * n * 192 * c  # its input needs no gradient
  assert found["tower"] == 2 * (4 * block - 2 * n * c * 32) + 2 * stem
  assert found["connector"] == 3 * 2 * n * (c * d + d * d)


def test_the_report_says_what_a_person_asks(config, capsys, monkeypatch):
  from align_jax.plan import whole
  from align_jax.plan.stage import plan_stage

  monkeypatch.setattr(whole, "plan_stage",
                      lambda c, s, t, kept: plan_stage(
                          c, s, t, compiling=False))
  code, out, err = _plan(capsys, "--config", config)
  assert code == 0
  for text in ("stage connect on cpu:8", "stage all on cpu:8",
               "decoder/layers/q_dhk", "parameters", "optimizer",
               "temporaries", "TFLOP a step", "tower", "head", "T5"):
    assert text in out, text
  assert "not compiled" in err


def test_without_libtpu_all_but_the_compiled_is_there(config, capsys,
                                                      monkeypatch):
  find = topology.importlib.util.find_spec
  monkeypatch.setattr(topology.importlib.util, "find_spec",
                      lambda name: None if name == "libtpu" else find(name))
  code, out, err = _plan(capsys, "--config", config, "--topology", "v5e:2x4",
                         "--json")
  plan = json.loads(out)
  stage = plan["stages"]["all"]
  assert code == 0 and plan["compiled"] is False
  assert stage["parameters"] > stage["trainable_parameters"] - 1 > 0
  assert stage["model_flops"] > 0 and stage["predicted_bytes"] > 0
  assert stage["chip"] == "TPU v5e" and stage["compute_seconds"] > 0
  assert all(stage[field] is None for field in COMPILED)
  assert 'pip install "align-jax[tpu]"' in err


@pytest.mark.parametrize("given, said", [
    (("--topology", "v5e:16x61"), "did you mean 'v5e:16x16'?"),
    (("--topology", "v5e-256"), "did you mean 'v5e:16x16'?"),
    (("--topology", "v4-8"), "did you mean 'v4:2x2x1'?"),
    (("--topology", "v7x:2x2"), "unknown topology 'v7x:2x2'"),
    (("--topology", "cpu:4"), "needs 8 devices, there are 4"),
    (("--config.data.rows=6",), "6 rows, which the 4 devices"),
    (("--config.mesh.fsdp=1", "--config.mesh.tensor=8"),
     "mesh.tensor: 8 devices do not divide the decoder's 4 heads"),
    (("--config.mesh.fsdp=2", "--config.mesh.tensor=1",
      "--config.mesh.context=4", "--config.data.row_length=18"),
     "18 tokens do not divide by mesh.context = 4"),
    (("--stage", "alll"), "did you mean 'all'?"),
    (("--config.plan.topology=",), "names no topology to plan for"),
    (("--config.model.decoder.published=llama31_9b",),
     "did you mean 'llama31_8b'?"),
])
def test_bad_input_is_one_clear_error_before_any_compile(
    config, capsys, monkeypatch, given, said):
  from align_jax.plan import stage

  monkeypatch.setattr(stage, "abstract_stage", None)  # never reached
  code, out, err = _plan(capsys, "--config", config, *given)
  assert code == 2 and not out
  assert said in err and "Traceback" not in err
