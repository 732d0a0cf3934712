"""From a config to parameters: dtypes by stage, copies, shards, origins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.build import build, init_params, param_shapes
from align_jax.config import (
  ConnectorConfig,
  MeshConfig,
  ModelConfig,
  PartConfig,
)
from align_jax.errors import InputError
from align_jax.parallel.mesh import make_mesh
from align_jax.train.select import flatten

TOWER = dict(image_size=16, patch_size=8, width=16, layers=2, heads=2,
             mlp_width=32)
DECODER = dict(vocab_size=64, width=16, layers=2, heads=4, kv_heads=2,
               mlp_width=32)


def _config(connector="align", tied=True, **fields):
  return ModelConfig(
      tower=PartConfig(kind="clip", config=TOWER),
      connector=ConnectorConfig(connector),
      decoder=PartConfig(kind="llama", config=dict(DECODER, tied_head=tied)),
      dtype="float32", remat="none", **fields)


def _init(config, patterns=("connector/*",), **mesh):
  parts = build(config)
  params, origins = init_params(
      parts, make_mesh(MeshConfig(**(mesh or dict(data=8)))), patterns,
      jax.random.key(0))
  return flatten(params), origins


@pytest.mark.parametrize("tied,source", [(True, "decoder/embed_vd"),
                                         (False, "decoder/head_vd")])
def test_aligns_w2_starts_as_a_copy_of_the_head(tied, source):
  params, origins = _init(_config(tied=tied, frozen_dtype="float32"))
  np.testing.assert_array_equal(params["connector/w2_vd"], params[source])
  assert origins["connector/w2_vd"] == f"copy of {source}"
  pointer = lambda x: x.addressable_data(0).unsafe_buffer_pointer()
  assert pointer(params["connector/w2_vd"]) != pointer(params[source])


def test_what_a_stage_trains_is_f32_and_the_rest_is_frozen_dtype():
  params, origins = _init(
      _config("mlp"), ("connector/*", "tower/layers[-1]/*"))
  for path, x in params.items():
    trained = path.startswith(("connector/", "tower/layers/"))
    assert x.dtype == (jnp.float32 if trained else jnp.bfloat16), path
  assert set(origins) == set(params)
  assert set(origins.values()) == {"initialised"}


def test_a_layout_changes_where_parameters_lie_and_not_what_they_are():
  config = _config(frozen_dtype="float32")
  want, _ = _init(config)
  got, _ = _init(config, data=2, fsdp=2, tensor=2)
  for path in want:
    np.testing.assert_array_equal(got[path], want[path], err_msg=path)
  table = got["decoder/embed_vd"]
  assert table.addressable_data(0).shape == (32, 8)


def test_shapes_are_those_of_the_parameters_and_make_no_array():
  config = _config("mlp")
  shapes = param_shapes(build(config), make_mesh(MeshConfig(data=8)))
  params, _ = _init(config, patterns=())
  assert {p: (s.shape, s.dtype) for p, s in shapes.items()} == {
      p: (x.shape, x.dtype) for p, x in params.items()}


def test_tokens_of_an_image_follow_the_tower_and_the_class_token():
  assert build(_config("mlp")).tokens_per_image == 4
  config = _config("mlp")
  tower = PartConfig(kind="clip", config=TOWER, class_token=True)
  kept = ModelConfig(tower=tower, connector=config.connector,
                     decoder=config.decoder, dtype="float32")
  assert build(kept).tokens_per_image == 5


def test_a_model_without_a_tokenizer_says_where_to_name_one():
  with pytest.raises(InputError, match="set model.decoder.tokenizer"):
    print(build(_config()).tokenizer)


@pytest.mark.parametrize("part,field,value,words", [
    ("tower", "widht", 16, "widht"),
    ("tower", "heads", 3, "no multiple of heads"),
    ("decoder", "kv_heads", 3, "do not divide into 3"),
])
def test_sizes_that_do_not_fit_name_the_part(part, field, value, words):
  sizes = dict({"tower": TOWER, "decoder": DECODER}[part], **{field: value})
  kinds = {"tower": "clip", "decoder": "llama"}
  config = _config()
  parts = {"tower": config.tower, "decoder": config.decoder,
           part: PartConfig(kind=kinds[part], config=sizes)}
  with pytest.raises(InputError, match=words) as error:
    build(ModelConfig(connector=config.connector, **parts))
  assert f"model.{part}.config" in str(error.value)
