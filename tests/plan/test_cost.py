"""Predicted parameters and FLOPs against counts by hand, arithmetic shown."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from align_jax.build import build, param_shapes
from align_jax.config import (
  Config,
  ConnectorConfig,
  DataConfig,
  ModelConfig,
  PartConfig,
  StageConfig,
)
from align_jax.ops.stack import REMAT
from align_jax.parallel.layout import AXES, Layout
from align_jax.parallel.mesh import abstract_mesh
from align_jax.plan import cost
from align_jax.plan.trace import traced
from align_jax.train.select import trainables, unflatten


def _config(tower="siglip_so400m_384", decoder="llama32_3b",
            connector="mlp", train=None, remat="none", **data) -> Config:
  part = lambda x: (PartConfig(published=x) if isinstance(x, str)
                    else PartConfig(**x))
  sizes = dict(rows=8, row_length=1024, images_per_row=1, labels_per_row=256)
  return Config("hand", ModelConfig(
      tower=dataclasses.replace(part(tower), layer=-2), decoder=part(decoder),
      connector=ConnectorConfig(connector), remat=remat),
      DataConfig(**(sizes | data)),
      (StageConfig("all", 10, train or {"*": 1e-5}),))


def _shapes(config: Config):
  mesh = abstract_mesh(dict.fromkeys(AXES, 1))
  parts = build(config.model)
  return parts, param_shapes(parts, mesh, ["*"])


def _count(shapes, prefix):
  return sum(math.prod(s.shape) for p, s in shapes.items()
             if p.startswith(prefix))


def _cost(config: Config):
  parts, shapes = _shapes(config)
  trained = trainables(shapes, config.stages[0].train)
  return cost.step_cost(config, config.stages[0], parts, shapes,
                        trained), shapes


def test_siglip_and_llama_3b_with_mlp_as_counted_by_hand():
  costs, shapes = _cost(_config())
  # SigLIP-so400m: 27 layers of C = 1152, F = 4304.
  layer = (4 * (1152 * 1152 + 1152)          # q k v o with biases
           + 1152 * 4304 + 4304 + 4304 * 1152 + 1152
           + 4 * 1152)                       # two norms, scale and bias
  tower = (14 * 14 * 3 * 1152 + 1152         # patches with bias
           + 729 * 1152 + 27 * layer + 2 * 1152)
  assert _count(shapes, "tower/") == tower == 412_987_248
  # Llama-3.2-3B: 28 layers of D = 3072, 24 heads and 8 for keys, of 128.
  layer = (3072 * 3072 + 2 * 3072 * 1024 + 3072 * 3072
           + 3 * 3072 * 8192 + 2 * 3072)
  decoder = 128_256 * 3072 + 28 * layer + 3072
  assert _count(shapes, "decoder/") == decoder == 3_212_749_824
  assert _count(shapes, "connector/") == (
      1152 * 3072 + 3072 + 3072 * 3072 + 3072)

  # FLOPs of 8 rows of 1024 tokens, 8 images of 729 patches, all trained.
  n = 8 * 729
  per_layer = 2 * n * (4 * 1152 * 1152 + 2 * 1152 * 4304)
  attend = 4 * 8 * 729 * 729 * 1152
  stem = 2 * n * 588 * 1152
  # Layer -2 of 27: 26 are computed. Pixels need no gradient: 2, not 3.
  assert costs["tower"].model == pytest.approx(
      3 * 26 * (per_layer + attend) + 2 * stem)
  assert costs["connector"].model == pytest.approx(
      3 * 2 * n * (1152 * 3072 + 3072 * 3072))
  t = 8 * 1024
  matrices = 2 * 3072 * 3072 + 2 * 3072 * 1024 + 3 * 3072 * 8192
  half = 2 * 8 * 1024 * 1024 * 3072          # causal: half of 4 L L D
  assert costs["decoder"].model == pytest.approx(
      3 * 28 * (2 * t * matrices + half))
  # 6 P T for the body, the head on 256 labels a row alone.
  assert 3 * 28 * 2 * t * matrices == 6 * t * 28 * matrices
  assert costs["head"].model == pytest.approx(3 * 2 * 8 * 256 * 3072 * 128_256)
  assert costs["decoder"].masked == pytest.approx(3 * 28 * half)


def test_llama_8b_with_align_and_a_frozen_tower_as_counted_by_hand():
  costs, shapes = _cost(_config(
      decoder="llama31_8b", connector="align",
      train={"connector/*": 1e-3, "decoder/*": 1e-5}))
  layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336 + 2 * 4096
  assert _count(shapes, "decoder/") == (
      2 * 128_256 * 4096 + 32 * layer + 4096) == 8_030_261_248
  # W1, LN1, W2, LN2.
  assert _count(shapes, "connector/") == (
      1152 * 4096 + 2 * 4096 + 128_256 * 4096 + 2 * 128_256) == 530_319_872
  n = 8 * 729
  layer = 2 * n * (4 * 1152 * 1152 + 2 * 1152 * 4304) + (
      4 * 8 * 729 * 729 * 1152)
  assert costs["tower"].model == pytest.approx(  # forward alone
      26 * layer + 2 * n * 588 * 1152)
  # W1's input is frozen: 2 of 3 products. W2 and E: 12 N V D in all.
  assert costs["connector"].model == pytest.approx(
      2 * 2 * n * 1152 * 4096 + 12 * n * 128_256 * 4096)


def test_vicuna_with_only_the_connector_trained_as_counted_by_hand():
  costs, shapes = _cost(_config(
      tower="clip_l14_336", decoder="vicuna_7b",
      train={"connector/*": 1e-3}))
  # CLIP-L/14: 577 places with the class token; no bias on patches.
  layer = 4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
  assert _count(shapes, "tower/") == (
      588 * 1024 + 1024 + 577 * 1024 + 4 * 1024 + 24 * layer) == 303_507_456
  layer = 4 * 4096 * 4096 + 3 * 4096 * 11_008 + 2 * 4096
  assert _count(shapes, "decoder/") == (
      2 * 32_000 * 4096 + 32 * layer + 4096) == 6_738_415_616
  t = 8 * 1024
  half = 2 * 8 * 1024 * 1024 * 4096
  matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008)
  # A frozen decoder passes gradients on: 4 P T, and attention 3 times.
  assert costs["decoder"].model == pytest.approx(
      2 * 2 * t * matrices + 3 * 32 * half)
  n = 8 * 576
  assert costs["connector"].model == pytest.approx(
      2 * n * (2 * 1024 * 4096 + 3 * 4096 * 4096))
  assert costs["head"].model == pytest.approx(
      2 * 2 * 8 * 256 * 4096 * 32_000)


SMALL = dict(
    tower=dict(kind="siglip", config=dict(
        image_size=16, patch_size=8, width=16, layers=3, heads=2,
        mlp_width=24)),
    decoder=dict(kind="llama", config=dict(
        vocab_size=64, width=16, layers=2, heads=4, kv_heads=2,
        mlp_width=40)), row_length=24, labels_per_row=5)


def test_what_modules_declare_is_what_tracing_counts():
  config = _config(**SMALL, connector="align")
  parts, shapes = _shapes(config)
  said = cost.forward_products(config, config.stages[0], parts, shapes)
  total = lambda products, path: sum(
      p.flops + p.masked for p in products if p.param == path)

  tower, decoder = parts.model.tower, parts.model.decoder
  found = traced(
      lambda p, x: tower.apply({"params": unflatten(p)}, x),
      cost._under("tower/", shapes),
      jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.bfloat16))
  for path in ("patch_ijac", "layers/q_chk", "layers/down_fc", ""):
    assert total(found, path) == total(said["tower"], path) > 0, path

  ids = jax.ShapeDtypeStruct((8, 24), jnp.int32)
  found = traced(
      lambda p, x, i: decoder.apply({"params": unflatten(p)}, x, i, i)[0],
      cost._under("decoder/", shapes),
      jax.ShapeDtypeStruct((8, 24, 16), jnp.bfloat16), ids)
  for path in ("layers/q_dhk", "layers/k_dgk", "layers/down_fd", ""):
    assert total(found, path) == total(said["decoder"], path) > 0, path


def test_align_and_the_head_declare_what_tracing_counts(monkeypatch):
  config = _config(**SMALL, connector="align")
  parts, shapes = _shapes(config)
  declared = cost.forward_products(config, config.stages[0], parts, shapes)
  from align_jax.connectors.align import Align
  from align_jax.objectives.next_token import NextToken

  monkeypatch.setattr(Align, "products", classmethod(lambda *a, **k: None))
  monkeypatch.delattr(NextToken, "products")
  counted = cost.forward_products(config, config.stages[0], parts, shapes)
  for part in ("connector", "head"):
    group = lambda products: {
        p: sum(q.flops for q in products if q.param == p)
        for p in {q.param for q in products}}
    assert group(counted[part]) == pytest.approx(group(declared[part]))


@pytest.mark.parametrize("remat", REMAT)
def test_every_policy_says_what_it_recomputes(remat):
  costs, _ = _cost(_config(**SMALL, remat=remat))
  again = costs["decoder"].recomputed
  forward = costs["decoder"].model / 3
  if remat == "none":
    assert again == 0
  else:
    assert 0 < again < forward


def test_upper_half_trained_costs_gradients_of_the_upper_half_alone():
  whole, _ = _cost(_config(**SMALL))
  half, _ = _cost(_config(**SMALL, train={"decoder/layers[1:]/*": 1e-5}))
  # Forward of both layers, gradients of the second alone.
  assert half["decoder"].model == pytest.approx(
      whole["decoder"].model / 3 * (1 + 2 * 0.5))
  assert half["tower"].model < whole["tower"].model / 2.5


def test_a_second_look_costs_gradients_of_the_layers_above_it_alone():
  """The first layer has no trainable before it, the second has W_q, W_p."""
  config = _config(**SMALL, train={"connector/again_*": 1e-5})
  connector = ConnectorConfig("vpg_c", dict(
      queries=4, depth=2, width=12, heads=2, mlp_width=20, layer=1))
  config = dataclasses.replace(config, model=dataclasses.replace(
      config.model, connector=connector))
  parts, shapes = _shapes(config)
  listed = cost.forward_products(
      config, config.stages[0], parts, shapes)["decoder"]
  flops = lambda layer, own: sum(
      p.flops for p in listed if p.layer == layer and bool(p.param) == own
      and not p.param.startswith("/"))
  paths = [p.param for p in listed]
  ask = paths.index("/connector/again_ask_de")
  tell = paths.index("/connector/again_tell_ed")
  assert {p.layer for p in listed[:ask]} == {0}
  assert {p.layer for p in listed[tell + 1:]} == {1}
  assert listed[ask].flops == 2 * 8 * 16 * 12  # an image a row, D x E
  assert listed[tell].flops == 2 * 8 * 4 * 12 * 16  # four queries each
  trained = trainables(shapes, config.stages[0].train)
  looks = cost.training_cost({"connector": listed[ask:tell + 1]}, trained,
                             shapes, "none")["connector"].model
  costs, _ = _cost(config)
  assert costs["decoder"].model == pytest.approx(
      flops(0, True) + flops(0, False) + looks
      + 2 * flops(1, True) + 3 * flops(1, False))


def test_what_a_plan_without_a_compiler_takes_attention_to_run_as():
  axes = dict.fromkeys(AXES, 1)
  long = _config(row_length=4096)
  forms = {}
  for platform in ("cpu", "tpu"):
    parts = build(long.model, Layout(abstract_mesh(axes, platform)))
    forms[platform] = cost.attention_form(parts, 4096)
  assert forms == {"cpu": "plain", "tpu": "splash"}
