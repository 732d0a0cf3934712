"""Table 7 on tiny shapes: every connector answers, and says what it costs."""

import pytest

from align_jax.bench import Options, connectors
from align_jax.connectors import CONNECTORS
from align_jax.validate import validate
from tests.train.tiny_run import make


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  from align_jax.config import load_config
  path = make(tmp_path_factory.mktemp("bench"))
  return validate(load_config(str(path)), "tiny")


def test_each_kind_is_a_connector_and_all_of_the_paper_are_there():
  assert set(connectors.KINDS) <= set(CONNECTORS.names())
  assert {"mlp", "perceiver", "ovis", "align", "h_reducer",
          "c_abstractor"} <= set(connectors.KINDS)


@pytest.mark.slow
def test_figures_of_two_connectors(config, monkeypatch):
  monkeypatch.setattr(connectors, "KINDS", {
      "align": {}, "perceiver": dict(latents=2, depth=1, heads=2,
                                     head_width=8)})
  align, perceiver = connectors.run(Options(rounds=1, config=config))
  assert (align.key, perceiver.key) == ("table7_align", "table7_perceiver")
  for figure in (align, perceiver):
    assert figure.value > 0 and figure.unit == "seconds"
    assert figure.parts["tokens_per_second"] == pytest.approx(
        20 / figure.value)
  # P = 4 patches of C = 16 to D = 16 over a vocabulary of V.
  v = config.model.decoder.config["vocab_size"]
  assert align.parts["tokens_out"] == 4 and perceiver.parts["tokens_out"] == 2
  assert align.parts["parameters"] == 16 * 16 + 2 * 16 + 16 * v + 2 * v
  assert align.parts["gflops_an_image"] == pytest.approx(
      (2 * 4 * 16 * 16 + 2 * 2 * 4 * v * 16) / 1e9)
  # At least the model itself, and more with more parameters.
  assert align.parts["memory_mib"] > 0.02


def test_grids_that_a_default_does_not_divide():
  fit = connectors._options
  assert fit("h_reducer", {}, 256) == {"columns": 4}
  assert fit("h_reducer", {}, 729) == {"columns": 3}
  assert fit("pixel_shuffle", {}, 256) == {}
  assert fit("pixel_shuffle", {}, 729) == {"form": "idefics3", "factor": 3}
  for kind in connectors.KINDS:
    for patches in (256, 729):
      given = fit(kind, connectors.KINDS[kind], patches)
      assert CONNECTORS.get(kind).tokens_out(patches, **given) > 0
