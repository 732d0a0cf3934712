"""Patches where images and texts are compared, against torch.

The references take the tower of transformers apart and follow the papers
step by step, one patch or one layer at a time.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from align_jax.config import MeshConfig
from align_jax.hub.tower_face import load_tower
from tests.parity.towers_reference import difference, pixels_for, randomise

SIDE, TOLERANCE, BROKEN = 24, 1e-4, 1e-2
VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4,
              num_attention_heads=4, image_size=SIDE, patch_size=8)
TEXT = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=1,
            num_attention_heads=3, vocab_size=30, max_position_embeddings=9,
            bos_token_id=0, eos_token_id=29, pad_token_id=1)


def make_clip(folder: Path, seed: int = 0, **vision: Any
              ) -> transformers.CLIPModel:
  model = transformers.CLIPModel(transformers.CLIPConfig(
      text_config=TEXT, vision_config=VISION | vision, projection_dim=20))
  randomise(model.eval(), seed)
  model.save_pretrained(folder)
  return model


def make_siglip(folder: Path, seed: int = 0, **vision: Any
                ) -> transformers.SiglipModel:
  vision = VISION | vision
  model = transformers.SiglipModel(transformers.SiglipConfig(
      text_config=TEXT | dict(projection_size=vision["hidden_size"]),
      vision_config=vision))
  randomise(model.eval(), seed)
  model.save_pretrained(folder)
  return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory
         ) -> tuple[Path, transformers.CLIPModel]:
  folder = tmp_path_factory.mktemp("clip")
  return folder, make_clip(folder)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory
           ) -> tuple[Path, transformers.SiglipModel]:
  folder = tmp_path_factory.mktemp("siglip")
  return folder, make_siglip(folder)


def unit(x: torch.Tensor) -> torch.Tensor:
  return x / x.norm(dim=-1, keepdim=True)


def hidden(model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
  return model.vision_model(pixel_values=pixels,
                            output_hidden_states=True).hidden_states


def projected(model: Any, x: torch.Tensor) -> torch.Tensor:
  """CLIP's norm and projection, on patches instead of the class token."""
  return unit(model.visual_projection(
      model.vision_model.post_layernorm(x[:, 1:])))


def raw(model: Any, pixels: torch.Tensor, layer: int) -> torch.Tensor:
  return projected(model, hidden(model, pixels)[layer])


def maskclip(model: Any, pixels: torch.Tensor, layer: int) -> torch.Tensor:
  """MaskCLIP's ViT: the value path, residual and MLP kept."""
  x = hidden(model, pixels)[layer - 1]
  block = model.vision_model.encoder.layers[layer]
  v = block.self_attn.v_proj(block.layer_norm1(x))
  x = x + block.self_attn.out_proj(v)
  x = x + block.mlp(block.layer_norm2(x))
  return projected(model, x)


def surgery(model: Any, pixels: torch.Tensor, layer: int,
            blocks: int) -> torch.Tensor:
  """CLIP Surgery's second path: attention of values to values, no MLP."""
  states = hidden(model, pixels)
  layers = model.vision_model.encoder.layers
  last = len(layers) + 1 + layer
  new = states[last - blocks]
  heads = model.config.vision_config.num_attention_heads
  for n in range(last - blocks, last):
    attn = layers[n].self_attn
    v = attn.v_proj(layers[n].layer_norm1(states[n]))
    added = torch.zeros_like(v)
    width = v.shape[-1] // heads
    for h in range(heads):
      one = v[..., h * width:(h + 1) * width]
      scores = one @ one.transpose(-1, -2) * width ** -0.5
      added[..., h * width:(h + 1) * width] = scores.softmax(-1) @ one
    new = new + attn.out_proj(added)
  return projected(model, new)


def map_head(model: Any, pixels: torch.Tensor, layer: int) -> torch.Tensor:
  """The pooling head, given one patch after the other."""
  vision = model.vision_model
  x = vision.post_layernorm(hidden(model, pixels)[layer])
  return unit(torch.stack([
      vision.head(x[:, p:p + 1]) for p in range(x.shape[1])], 1))


WAYS: dict[str, Callable[..., torch.Tensor]] = dict(
    raw=raw, maskclip=maskclip, surgery=surgery, map_head=map_head)


@pytest.mark.parametrize("how, options", [
    ("raw", dict(layer=-1)), ("raw", dict(layer=-2)),
    ("maskclip", dict(layer=-1)), ("surgery", dict(layer=-1, blocks=2)),
    ("map_head", dict(layer=-1)), ("map_head", dict(layer=-2))])
def test_equals_the_reference(how: str, options: dict[str, int],
                              request: pytest.FixtureRequest) -> None:
  folder, model = request.getfixturevalue(
      "siglip" if how == "map_head" else "clip")
  ours, theirs = pixels_for(SIDE)
  with torch.no_grad():
    want = WAYS[how](model, theirs, **options)
  got = load_tower(folder).patch_embeds(ours, how, **options)
  assert got.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(got, axis=-1), 1, rtol=1e-5)
  assert difference(got, want) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("vision", [
    dict(), dict(hidden_size=48, num_attention_heads=6, image_size=40),
    dict(num_hidden_layers=7, patch_size=12)])
def test_equals_the_reference_at_more_shapes(
    vision: dict[str, int], seed: int, tmp_path: Path) -> None:
  ours, theirs = pixels_for(vision.get("image_size", SIDE), seed=seed)
  depth = vision.get("num_hidden_layers", 4)
  for make, ways in ((make_clip, ("raw", "maskclip", "surgery")),
                     (make_siglip, ("map_head",))):
    model = make(tmp_path / make.__name__, seed, **vision)
    tower = load_tower(tmp_path / make.__name__)
    for how in ways:
      for layer in (-1, -2):
        options = [dict(layer=layer)]
        if how == "surgery":
          options = [dict(layer=layer, blocks=b) for b in (1, depth - 1)]
        for given in options:
          with torch.no_grad():
            want = WAYS[how](model, theirs, **given)
          got = tower.patch_embeds(ours, how, **given)
          assert difference(got, want) < TOLERANCE, (how, given)


def test_the_ways_differ(clip) -> None:
  """Or a reference could be met by the wrong one."""
  folder, _ = clip
  ours, _ = pixels_for(SIDE)
  tower = load_tower(folder)
  found = [np.asarray(tower.patch_embeds(ours, how, **options))
           for how, options in (
               ("raw", {}), ("raw", dict(layer=-2)), ("maskclip", {}),
               ("surgery", dict(blocks=2)), ("surgery", dict(blocks=3)))]
  for i, one in enumerate(found):
    for other in found[:i]:
      assert np.abs(one - other).max() > BROKEN


@pytest.mark.slow
def test_six_blocks_as_published_or_all_there_are(clip, tmp_path: Path
                                                  ) -> None:
  ours, _ = pixels_for(SIDE)
  tower = load_tower(clip[0])
  np.testing.assert_array_equal(
      tower.patch_embeds(ours, "surgery"),
      tower.patch_embeds(ours, "surgery", blocks=4))
  make_clip(tmp_path, num_hidden_layers=7)
  tower = load_tower(tmp_path)
  np.testing.assert_array_equal(
      tower.patch_embeds(ours, "surgery"),
      tower.patch_embeds(ours, "surgery", blocks=6))


@pytest.mark.parametrize("name, how", [
    ("clip", "surgery"),
    pytest.param("siglip", "map_head", marks=pytest.mark.slow)])
def test_eight_devices_equal_one(
    name: str, how: str, request: pytest.FixtureRequest) -> None:
  """Also where the devices do not divide the images."""
  assert len(jax.devices()) == 8
  folder, _ = request.getfixturevalue(name)
  ours, _ = pixels_for(SIDE, images=5)
  one = load_tower(folder)
  eight = load_tower(folder, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
  for give in (lambda t: t.patch_embeds(ours, how), lambda t: t(ours),
               lambda t: t.image_embeds(ours), lambda t: t.pooled(ours)):
    want, got = give(one), give(eight)
    assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)
  spread = [leaf for leaf in jax.tree.leaves(eight.params)
            if not leaf.sharding.is_fully_replicated]
  assert len(spread) > 5


def test_a_way_that_a_tower_does_not_have_is_refused(clip, siglip) -> None:
  ours, _ = pixels_for(SIDE)
  towers = {"clip": load_tower(clip[0]), "siglip": load_tower(siglip[0])}
  for name, how, options, text in (
      ("clip", "map_head", {}, "no pooling head; use one of raw, maskclip"),
      ("siglip", "raw", {}, "use 'map_head'"),
      ("siglip", "maskclip", {}, "use 'map_head'"),
      ("clip", "maskclp", {}, "did you mean 'maskclip'"),
      ("clip", "raw", dict(layer=1), "counted from the end"),
      ("clip", "surgery", dict(blocks=5), "of 4 layers, 5 cannot"),
      ("clip", "surgery", dict(blocks=0), "of 4 layers, 0 cannot"),
      ("clip", "maskclip", dict(layer=-5), "of 0 layers, 1 cannot")):
    with pytest.raises(ValueError, match=text):
      towers[name].patch_embeds(ours, how, **options)
