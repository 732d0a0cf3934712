"""AlignVLM's recipes are the paper's, number by number, written out by hand.

From arXiv 2502.01341: table 6, section 5.2.2, and where the text says so.
"""

import pytest

from align_jax.build import build
from align_jax.config import load_config
from align_jax.errors import InputError
from align_jax.parallel import topology
from align_jax.parallel.mesh import abstract_mesh
from align_jax.plan.check import check
from align_jax.plan.cost import connector_cost
from align_jax.plan.stage import all_shapes
from align_jax.validate import validate

EVERYTHING = {"tower/*", "connector/*", "decoder/*"}
LLM_AND_CONNECTOR = {"connector/*", "decoder/*"}
# trainable, batch, text max length, learning rate, optimizer steps. An epoch
# is 8.1M captions, 7.5M documents, 570K tasks (of which there are five).
TABLE6 = {
    "llama32_1b": [
        (EVERYTHING, 512, 1024, 1e-5, 15_821),
        (EVERYTHING, 512, 2048, 5e-5, 14_649),
        (LLM_AND_CONNECTOR, 512, 2048, 5e-5, 5_567)],
    "llama32_3b": [
        (EVERYTHING, 512, 1024, 1e-5, 15_821),
        (EVERYTHING, 256, 2048, 5e-5, 29_297),
        (LLM_AND_CONNECTOR, 256, 2048, 5e-5, 11_133)],
    "llama31_8b": [
        (EVERYTHING, 512, 1024, 1e-5, 15_821),
        (EVERYTHING, 256, 2048, 1e-5, 29_297),
        (LLM_AND_CONNECTOR, 256, 2048, 1e-5, 11_133)],
}
WIDTH = {"llama32_1b": 2048, "llama32_3b": 3072, "llama31_8b": 4096}


def read(name):
  return validate(load_config(f"alignvlm/{name}"), name)


@pytest.mark.parametrize("llm", TABLE6)
def test_table_6(llm):
  config = read(llm)
  assert [s.name for s in config.stages] == ["captions", "documents", "tasks"]
  for stage, (trained, batch, text, rate, steps) in zip(
      config.stages, TABLE6[llm], strict=True):
    assert set(stage.train) == trained
    assert set(stage.train.values()) == {rate}
    data = config.of(stage).data
    assert data.rows == batch and not data.pack  # one sample a row
    assert data.labels_per_row == data.text_length == text
    # Text beside nine tiles and the whole image, of 729 tokens each.
    assert 0 <= data.row_length - text - 7290 < 512
    assert data.images_per_row == 10
    assert stage.steps == steps
    assert stage.objectives == {"next_token": 1.0}
    assert batch / stage.accumulate == 256
  assert [list(s.data) for s in config.stages] == [
      ["captions"], ["documents"], ["tasks"]]
  kinds = {n: s.kind for n, s in config.data.sources.items()}
  assert kinds == dict(captions="webdataset", documents="bigdocs",
                       tasks="doc_downstream")
  assert config.data.tiling.kind == "coverage"
  assert config.data.tiling.options == dict(max_tiles=9, threshold=0.9)
  assert config.model.tower.published == "siglip_so400m_384"
  assert config.model.connector.kind == "align"
  assert config.model.connector.options == {"preset": "paper"}
  parts = build(config.model)
  assert parts.model.decoder.config.width == WIDTH[llm]
  assert parts.tokens_per_image == 729


def test_vcr_is_mixed_in_one_to_five_in_the_last_stage_alone():
  plain, mixed = read("llama32_3b"), read("llama32_3b:data=vcr")
  assert mixed.stages[2].data == {"tasks": 5.0, "vcr": 1.0}
  assert mixed.data.sources["vcr"].kind == "vcr_wiki"
  assert mixed.stages[:2] == plain.stages[:2]
  assert mixed.stages[2].steps == 13_360  # 5 x 684,000 / 256
  assert mixed.name == "alignvlm_llama32_3b_align_vcr"


def test_the_low_resource_runs():
  config = read("low_resource")
  first, second = config.stages
  assert first.train == {"connector/*": 1e-3, "newline_xd": 1e-3}
  assert second.train == {"connector/*": 1e-5, "decoder/*": 1e-5,
                          "tower/*": 2e-6, "newline_xd": 1e-5}
  assert config.of(first).data.rows == 32
  assert config.of(second).data.rows == 8
  assert first.steps == 17_442 and second.steps == 97_412  # one epoch each
  assert config.data.sources["captions"].kind == "llava_558k"
  assert config.data.sources["conversations"].kind == "llava_next"
  assert config.model.tower.layer == -2
  assert config.model.decoder.published == "llama32_3b"
  grid = config.data.tiling.options["grid"]
  assert [384, 384] in grid and [2304, 384] in grid and [1152, 1152] in grid
  assert max(max(point) for point in grid) == 2304
  parts = build(config.model)
  assert parts.tokens_per_image == 729 and parts.frame.newline == (0,)
  # Every pinpoint's tokens fit beside the text that is asked for.
  tiling = parts.reader(config.data).tiling
  most = max(len(tiling.places(h, w, 384, 729, parts.frame).visual)
             for h, w in grid)
  assert config.of(second).data.row_length >= most + 2048


@pytest.mark.parametrize("kind", [
    "mlp", "linear", "pixel_shuffle", "perceiver", "ovis", "h_reducer",
    "c_abstractor", "d_abstractor", "qformer", "mlp_wide", "mlp_ln"])
@pytest.mark.parametrize("name", ["llama32_3b", "low_resource"])
def test_every_connector_goes_into_a_recipe(name, kind):
  config = read(f"{name}:connector={kind}")
  assert config.model.connector.kind == kind
  parts = build(config.model)
  reader = parts.reader(config.data)
  frame, t = parts.frame, parts.tokens_per_image
  sizes = [(384, 384), (1152, 1152), (2304, 384), (384, 2304), (3000, 700)]
  most = max(len(reader.tiling.places(h, w, 384, t, frame).visual)
             for h, w in sizes) + len(frame.before) + len(frame.after)
  for stage in config.stages:
    data = config.of(stage).data
    assert most + data.labels_per_row <= data.row_length
  check(config, parts, topology.size(config.plan.topology))


@pytest.mark.parametrize("arg,tokens,parameters,flops", [
    # W1, LN1, W2, LN2; two products of 3072 x 128,256 a token.
    ("", 729, 1152 * 3072 + 2 * 3072 + 128_256 * 3072 + 2 * 128_256,
     729 * (2 * 1152 * 3072 + 4 * 3072 * 128_256)),
    ("connector=mlp", 729, 1152 * 3072 + 3072 + 3072 * 3072 + 3072,
     729 * 2 * (1152 * 3072 + 3072 * 3072)),
    # 27 made 28, so 14 x 14; 65,531 words of 65,536 rows.
    ("connector=ovis", 196, 4608 * 65_531 + 2 * 65_531 + 65_536 * 3072,
     196 * 2 * (4608 * 65_531 + 65_531 * 3072)),
])
def test_a_plan_says_what_a_connector_makes_and_costs(
    arg, tokens, parameters, flops):
  """Before anything runs, or is compiled."""
  config = read(f"llama32_3b:{arg}" if arg else "llama32_3b")
  stage = config.stages[2]
  config = config.of(stage)
  parts = build(config.model)
  axes = check(config, parts, topology.size(config.plan.topology))
  shapes = all_shapes(config, parts, abstract_mesh(axes))
  found = connector_cost(config, parts, shapes)
  assert found == dict(kind=config.model.connector.kind, tokens_out=tokens,
                       parameters=parameters, flops=pytest.approx(flops))


@pytest.mark.parametrize("arg,text", [
    ("connector=aling", "did you mean 'align'"),
    ("conector=align", "no argument 'conector=align'"),
    ("data=vrc", "did you mean 'vcr'"),
    ("ovis", "no argument 'ovis'"),
])
def test_wrong_arguments_are_said(arg, text):
  with pytest.raises(InputError, match=text):
    load_config(f"alignvlm/llama32_3b:{arg}")


def test_released_code_is_a_preset_of_a_recipe():
  config = read("low_resource:preset=released_code")
  assert config.model.connector.options == {"preset": "released_code"}
