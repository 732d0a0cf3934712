"""A connector that adds to another starts from the other's weights."""

import jax
import numpy as np
import pytest

from align_jax.build import build, init_params
from align_jax.config import ConnectorConfig as Connector
from align_jax.config import MeshConfig, ModelConfig, PartConfig
from align_jax.connectors import CONNECTORS
from align_jax.errors import InputError
from align_jax.hub.connector_file import save_connector
from align_jax.parallel.mesh import make_mesh
from align_jax.train.select import flatten

SIZES = dict(queries=3, depth=2, width=8, heads=2, mlp_width=8, words=20,
             positions=6, instruction_length=4)
TINY = dict(width=8, layers=2, heads=1, mlp_width=8)


PERCEIVER = dict(latents=3, depth=2, heads=2, head_width=4)


def model(kind: str, weights: str = "", **options) -> ModelConfig:
  sizes = PERCEIVER if "perceiver" in kind else SIZES
  return ModelConfig(
      tower=PartConfig(kind="clip", config=dict(
          image_size=8, patch_size=8, **TINY)),
      connector=Connector(kind, sizes | options, weights),
      decoder=PartConfig(kind="llama", config=dict(vocab_size=20, **TINY)),
      dtype="float32", frozen_dtype="float32", remat="none")


def made(config: ModelConfig) -> tuple[dict, dict]:
  mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
  params, origins = init_params(build(config), mesh, ["connector/*"],
                                jax.random.key(5))
  return ({p.removeprefix("connector/"): np.asarray(x)
           for p, x in flatten(params).items() if p.startswith("connector")},
          origins)


@pytest.mark.parametrize("kind, options, text", (
    pytest.param("sam", dict(layer_h=1, layer_c=2), True,
                 marks=pytest.mark.slow),
    ("vpg_c", dict(layer=1), False),
    ("guided_perceiver", {}, None)))
def test_it_takes_the_others_weights_and_draws_its_own(
    kind, options, text, tmp_path):
  other = CONNECTORS.get(kind).extends
  options |= {} if text is None else dict(text=text)
  base, _ = made(model(other, **({} if text is None else dict(text=text))))
  base = {p: x + 0.5 for p, x in base.items()}
  save_connector(base, other, {}, tmp_path / "base")
  found, origins = made(model(kind, str(tmp_path / "base"), **options))
  for path, x in base.items():
    np.testing.assert_array_equal(found[path], x)
  added = found.keys() - base.keys()
  if kind != "vpg_c":
    assert {p.split("/")[0] for p in added} == {"guidance"}
    assert not found["guidance/c_eo"].any()
    assert origins["connector/guidance/c_eo"] == "initialised"
  else:
    assert all(p.startswith("again_") for p in added) and len(added) == 5
    # The second look's queries start as the first's.
    np.testing.assert_array_equal(found["again_queries_te"],
                                  base["queries_te"])


def test_vpg_c_leaves_what_reads_text(tmp_path):
  base, _ = made(model("qformer", text=True))
  save_connector(base, "qformer", {}, tmp_path / "base")
  found, _ = made(model("vpg_c", str(tmp_path / "base"), layer=1))
  kept = found.keys() & base.keys()
  assert {p.split("_")[0].split("/")[-1] for p in base.keys() - kept} == {
      "words", "positions", "text"}
  for path in kept:
    np.testing.assert_array_equal(found[path], base[path])


def test_no_other_kind_lends_its_weights(tmp_path):
  save_connector({"w": np.zeros(3, np.float32)}, "linear", {}, tmp_path / "l")
  with pytest.raises(InputError, match="asks for 'sam'"):
    build(model("sam", str(tmp_path / "l"), layer_h=1, layer_c=2))
  save_connector({"w": np.zeros(3, np.float32)}, "sam", {}, tmp_path / "s")
  with pytest.raises(InputError, match="asks for 'qformer'"):
    build(model("qformer", str(tmp_path / "s")))


def test_every_extended_kind_is_there():
  kinds = {name: CONNECTORS.get(name) for name in CONNECTORS.names()}
  assert {n: k.extends for n, k in kinds.items() if k.extends} == {
      "sam": "qformer", "vpg_c": "qformer", "guided_perceiver": "perceiver"}
