"""Towers by themselves: layers, layouts, and what they refuse."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from align_jax.config import MeshConfig
from align_jax.objectives import OBJECTIVES
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.parallel.rules import shardings
from align_jax.towers import TOWERS
from align_jax.towers.clip import DualConfig
from align_jax.towers.text import TextConfig, TextTower
from align_jax.towers.vit import ViT, ViTConfig
from align_jax.train.select import flatten, unflatten

SIZES = dict(image_size=16, patch_size=8, width=16, layers=3, heads=4,
             mlp_width=32)
CLIP = TOWERS.get("clip")(**SIZES)
# All that CLIP does not have.
RICH = TOWERS.get("dinov2")(**SIZES | dict(
    activation="silu", gated=True, registers=2, mask_token=True,
    learnt_size=32, antialias=True))
TEXT = TextConfig(vocab_size=24, width=16, layers=2, heads=4, mlp_width=32,
                  max_positions=6, eos_token=23)


def params_of(module: Any, *inputs: Any) -> Any:
  """Random ones, none of them neutral."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  rng = np.random.default_rng(1)

  def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32)

  return jax.tree.map(draw, shapes)


def run(module: Any, params: Any, *inputs: Any, **options: Any) -> Any:
  """One compilation, where `apply` alone would compile op by op."""
  return jax.jit(lambda params, inputs: module.apply(
      {"params": params}, *inputs, **options))(params, inputs)


def gap(got: jax.Array, want: jax.Array) -> float:
  return float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want))


def pixels(images: int = 3, side: int = 16) -> jax.Array:
  return jax.random.normal(jax.random.key(2), (images, side, side, 3))


def batch(rows: int = 8) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 20, (rows, 6))
  tokens[:, 4] = 23
  tokens[3] = tokens[0]
  segments = np.ones((rows, 6))
  segments[:, 5] = 0
  return dict(
      images=rng.integers(0, 256, (rows, 2, 16, 16, 3)).astype(np.uint8),
      image_boxes=np.tile([0, 0, 16, 16], (rows, 2, 1)).astype(np.int32),
      image_segment_ids=np.ones((rows, 2), np.int32),
      tokens=tokens.astype(np.int32), segment_ids=segments.astype(np.int32))


@pytest.mark.parametrize("layer", [-1, -2, -4])
def test_later_layers_are_not_computed(layer: int) -> None:
  """Nor do they reach the features: their gradient is exactly zero."""
  x, tower, used = pixels(1), ViT(CLIP, layer=layer), 4 + layer
  params = params_of(ViT(CLIP), x)
  loss = lambda p: jnp.square(tower.apply({"params": p}, x)).sum()
  grads = jax.jit(jax.grad(loss))(params)
  for name, leaf in grads["layers"].items():
    reached = np.abs(leaf.reshape(3, -1)).max(-1) > 0
    # A key's bias moves all logits of a query alike: no gradient, or rounding.
    assert reached[:used].all() or name == "k_bias_hk", name
    assert not reached[used:].any(), name
  assert f"length={used}" in str(jax.make_jaxpr(loss)(params))


@pytest.mark.parametrize("config", [
    CLIP, RICH, TOWERS.get("siglip")(**SIZES), TOWERS.get("eva")(**SIZES)])
def test_shapes(config: ViTConfig) -> None:
  x = pixels(5)
  params = params_of(ViT(config), x)
  out = run(ViT(config, layer=-2), params, x)
  assert out.shape == (5, config.patches, 16)
  if config.class_token:
    kept = run(ViT(config, class_token=True), params, x)
    assert kept.shape == (5, config.patches + 1, 16)
    pooled = run(ViT(config), params, x, method="pooled")
    assert pooled.shape == (5, 16)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_nothing(remat: str) -> None:
  x = pixels()
  params = params_of(ViT(CLIP), x)
  want, got = (flatten(jax.jit(jax.grad(lambda p, r=r: jnp.square(
      ViT(CLIP, remat=r).apply({"params": p}, x)).mean()))(params))
               for r in ("none", remat))
  assert all(gap(got[p], want[p]) < 1e-5 for p in want
             if not p.endswith("k_bias_hk") and want[p].any())


def test_bfloat16_is_computed_in_bfloat16() -> None:
  x = pixels()
  params = params_of(ViT(CLIP), x)
  want = run(ViT(CLIP), params, x)
  got = run(ViT(CLIP, dtype=jnp.bfloat16), params, x)
  assert got.dtype == jnp.bfloat16
  assert 1e-4 < gap(got.astype(jnp.float32), want) < 0.05


@pytest.mark.parametrize("config, mesh, images", [
    (CLIP, MeshConfig(data=8), 8),
    (CLIP, MeshConfig(data=2, fsdp=2, tensor=2), 5),
    (RICH, MeshConfig(data=2, fsdp=2, tensor=2), 5),
    (CLIP, MeshConfig(data=1, fsdp=2, tensor=2, context=2), 8)])
def test_eight_devices_equal_one(config: ViTConfig, mesh: MeshConfig,
                                 images: int) -> None:
  """Also where the devices do not divide the images."""
  x = pixels(images)
  params = params_of(ViT(config), x)
  grid = make_mesh(mesh)
  flat = flatten(params)
  shapes = jax.eval_shape(lambda: flat)
  placed = unflatten({
      path: jax.device_put(flat[path], where)
      for path, where in shardings(shapes, grid).items()})
  want = run(ViT(config), params, x)
  assert gap(run(ViT(config, layout=Layout(grid)), placed, x), want) < 1e-5


def test_clip_on_eight_devices_equals_one(capfd) -> None:
  """Loss and gradients of the whole, rows over data and fsdp."""
  config = DualConfig(CLIP, TEXT, embed_width=8)
  rows = batch()
  loss = OBJECTIVES.get("contrastive")(None)
  params = params_of(config.make(), rows)
  # Texts that differ, and a softmax that tells them apart: else gradients
  # cancel over the rows, and what is left is rounding.
  params["logit_scale"] = jnp.float32(3.0)
  params["text"]["embed_vc"] *= 3
  # Likewise attention that is not near uniform, where keys' gradients cancel.
  for part in ("tower", "text"):
    params[part]["layers"]["q_chk"] *= 4

  def both(layout: Layout):
    model = config.make(layout=layout)
    return jax.value_and_grad(lambda p, b: loss(
        model.apply({"params": p}, b), b, None, layout) / loss.weight(b))

  want, want_grads = jax.jit(both(Layout()))(params, rows)
  grid = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  layout = Layout(grid)
  flat = flatten(params)
  placed = unflatten({
      path: jax.device_put(flat[path], where) for path, where
      in shardings(jax.eval_shape(lambda: flat), grid).items()})
  spread = NamedSharding(grid, PartitionSpec(("replica", "data", "fsdp")))
  got, grads = jax.jit(both(layout))(placed, jax.device_put(rows, spread))
  np.testing.assert_allclose(got, want, rtol=1e-5)
  # A key's bias adds the same to all logits of a query, and softmax does not
  # see it: its gradient is rounding alone.
  grads, want_grads = flatten(grads), flatten(want_grads)
  for path, leaf in want_grads.items():
    if not path.endswith("k_bias_hk"):
      assert gap(grads[path], leaf) < 1e-5, path
  assert "full rematerialization" not in capfd.readouterr().err


def test_slot_0_is_the_image_of_a_row() -> None:
  config = DualConfig(CLIP, TEXT, embed_width=8)
  rows = batch()
  params = params_of(config.make(), rows)
  want = run(config.make(), params, rows)
  np.testing.assert_allclose(
      jnp.linalg.norm(want["image_embeds"], axis=-1), 1, rtol=1e-5)
  other = rows | {"images": rows["images"].copy()}
  other["images"][:, 1] = 0
  got = run(config.make(), params, other)
  np.testing.assert_array_equal(want["image_embeds"], got["image_embeds"])
  other["images"][0, 0] = 0
  got = run(config.make(), params, other)
  assert np.abs(want["image_embeds"] - got["image_embeds"])[0].max() > 1e-3


@pytest.mark.parametrize("change, texts", [
    (dict(image_size=7), ["image_size 7 is smaller than patch_size 8"]),
    (dict(width=18), ["width 18 is no multiple of heads 4"]),
    (dict(activation="gelu_tan"), ["'gelu_tan'; did you mean 'gelu_tanh'?"]),
    (dict(class_token=False), ["there is none"]),
    (dict(layers=0, mean=(0.5,)), ["layers is 0", "mean has 1 values"]),
    (dict(width=18, post_norm="pool"), ["multiple of heads", "'pooled'?"]),
    (dict(head=True, learnt_size=7, registers=-1), [
        "a tower has one of them", "learnt_size 7 is smaller",
        "registers and learnt_size"]),
])
def test_bad_sizes_are_listed_together(change, texts) -> None:
  with pytest.raises(ValueError) as caught:
    ViTConfig(**(SIZES | change))
  assert all(text in str(caught.value) for text in texts), caught.value


def test_bad_text_sizes() -> None:
  with pytest.raises(ValueError) as caught:
    dataclasses.replace(TEXT, heads=3, eos_token=24, activation="relu")
  for text in ("multiple of heads", "not below vocab_size", "'relu'"):
    assert text in str(caught.value)
  tokens = jnp.zeros((1, 7), jnp.int32)
  with pytest.raises(ValueError, match="7 tokens.*6 positions"):
    TextTower(TEXT).init(jax.random.key(0), tokens)


@pytest.mark.parametrize("fields, text", [
    (dict(layer=0), "counted from the end"),
    (dict(layer=-5), "to -4"),
])
def test_bad_layers(fields, text: str) -> None:
  with pytest.raises(ValueError, match=text):
    ViT(CLIP, **fields).init(jax.random.key(0), pixels())


def test_a_class_token_that_is_not_there() -> None:
  config = TOWERS.get("siglip")(**SIZES)
  with pytest.raises(ValueError, match="has none"):
    ViT(config, class_token=True).init(jax.random.key(0), pixels())
  params = params_of(ViT(config), pixels())
  with pytest.raises(ValueError, match="no class token"):
    ViT(config).apply({"params": params}, pixels(), method="pooled")


@pytest.mark.parametrize("shape", [(2, 24, 24, 3), (2, 3, 16, 16), (16, 16, 3)])
def test_pixels_of_another_shape(shape) -> None:
  with pytest.raises(ValueError, match=r"reads pixels f\[I,16,16,3\]"):
    ViT(CLIP).init(jax.random.key(0), jnp.zeros(shape))
