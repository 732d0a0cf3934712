"""CLIP against transformers, weights going both ways."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from align_jax.errors import InputError
from align_jax.hub.pretrained import read_spec, save_hf
from align_jax.hub.tower_face import load_tower
from align_jax.towers.vit import ViT
from tests.parity.towers_reference import (
  difference,
  load,
  pixels_for,
  randomise,
  run,
  sharpness,
)

SIDE, TOLERANCE, BROKEN = 24, 1e-4, 1e-2
VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3,
              num_attention_heads=4, image_size=SIDE, patch_size=8,
              projection_dim=20)
TEXT = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=3, vocab_size=30, max_position_embeddings=9,
            bos_token_id=0, eos_token_id=29, pad_token_id=1)


def vision_model(folder: Path, seed: int = 0, **changes: Any
                 ) -> transformers.CLIPVisionModel:
  config = transformers.CLIPVisionConfig(**VISION | changes)
  config._attn_implementation = "eager"
  model = transformers.CLIPVisionModel(config).eval()
  randomise(model, seed)
  model.save_pretrained(folder)
  return model


def whole_model(folder: Path, seed: int = 1, vision: Any = None,
                text: Any = None) -> transformers.CLIPModel:
  model = transformers.CLIPModel(transformers.CLIPConfig(
      text_config=TEXT | (text or {}), vision_config=VISION | (vision or {}),
      projection_dim=20)).eval()
  randomise(model, seed)
  model.save_pretrained(folder)
  return model


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory
           ) -> tuple[Path, transformers.CLIPVisionModel]:
  folder = tmp_path_factory.mktemp("clip_vision")
  return folder, vision_model(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory
          ) -> tuple[Path, transformers.CLIPModel]:
  folder = tmp_path_factory.mktemp("clip")
  return folder, whole_model(folder)


def texts(seed: int = 0) -> np.ndarray:
  """Four texts of differing length, each with an end, and padding after."""
  tokens = np.random.default_rng(seed).integers(2, 29, (4, 9))
  for row, end in zip(tokens, (8, 3, 5, 1)):
    row[end] = 29
    row[end + 1:] = 1
  return tokens.astype(np.int32)


def check(folder: Path, model: transformers.CLIPVisionModel, side: int,
          seed: int) -> None:
  """Features of several layers, and what the class token pools."""
  ours, theirs = pixels_for(side, seed=seed)
  with torch.no_grad():
    want = model(pixel_values=theirs, output_hidden_states=True,
                 output_attentions=True)
  assert sharpness(want.attentions) > 0.2
  assert want.last_hidden_state.std() > 1
  config = read_spec(folder).config
  params = load(ViT(config), folder, ours)
  for layer in (-1, -2, -1 - model.config.num_hidden_layers):
    kept = run(ViT(config, layer=layer, class_token=True), params, ours)
    assert difference(kept, want.hidden_states[layer]) < TOLERANCE, layer
  # The reference's last_hidden_state lacks the last norm too.
  last = run(ViT(config), params, ours)
  assert difference(last, want.last_hidden_state[:, 1:]) < TOLERANCE
  pooled = run(ViT(config), params, ours, method="pooled")
  assert difference(pooled, want.pooler_output) < TOLERANCE


def test_features_and_pooled(vision) -> None:
  check(*vision, SIDE, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("changes", [
    dict(image_size=32), dict(hidden_size=48, num_attention_heads=6),
    dict(image_size=30, patch_size=10), dict(num_hidden_layers=1),
    dict(hidden_act="gelu"), dict(layer_norm_eps=1e-3)])
def test_features_and_pooled_at_more_shapes(
    changes: dict[str, Any], seed: int, tmp_path: Path) -> None:
  model = vision_model(tmp_path, seed, **changes)
  check(tmp_path, model, changes.get("image_size", SIDE), seed)


@pytest.mark.parametrize("change", [
    dict(activation="gelu"), dict(activation="gelu_tanh"),
    dict(pre_norm=False), dict(norm_eps=1e-1)])
def test_a_peculiarity_switched_off_breaks_parity(vision, change) -> None:
  folder, model = vision
  ours, theirs = pixels_for(SIDE)
  config = read_spec(folder).config
  params = load(ViT(config), folder, ours)
  with torch.no_grad():
    want = model(pixel_values=theirs).last_hidden_state[:, 1:]
  other = dataclasses.replace(config, **change)
  got = run(ViT(other), params, ours)
  assert difference(got, want) > BROKEN


def test_the_class_token_and_the_last_norm_matter(vision) -> None:
  folder, model = vision
  ours, theirs = pixels_for(SIDE)
  config = read_spec(folder).config
  params = load(ViT(config), folder, ours)
  with torch.no_grad():
    want = model(pixel_values=theirs)
  without = dataclasses.replace(config, class_token=False, post_norm="none")
  patches = params | {"position_pc": params["position_pc"][1:]}
  got = run(ViT(without), patches, ours)
  assert difference(got, want.last_hidden_state[:, 1:]) > BROKEN
  unnormed = run(ViT(dataclasses.replace(config, post_norm="none")), params,
                 ours, method="pooled")
  assert difference(unnormed, want.pooler_output) > BROKEN
  normed = run(ViT(dataclasses.replace(config, post_norm="features")), params,
               ours)
  assert difference(normed, want.last_hidden_state[:, 1:]) > BROKEN


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_reads_files_with_and_without_the_prefix(
    vision, prefix: str, tmp_path: Path) -> None:
  folder, _ = vision
  state = safetensors.numpy.load_file(folder / "model.safetensors")
  state = {prefix + k.removeprefix("vision_model."): v
           for k, v in state.items()}
  # A buffer that older versions saved.
  state[prefix + "embeddings.position_ids"] = np.arange(10)[None]
  safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text((folder / "config.json").read_text())
  ours, _ = pixels_for(SIDE)
  want, got = load_tower(folder), load_tower(tmp_path)
  np.testing.assert_array_equal(want(ours), got(ours))
  assert got.provenance["class_c"].endswith(
      f"model.safetensors:{prefix}embeddings.class_embedding")


def test_writes_what_the_reference_reads(vision, tmp_path: Path) -> None:
  folder, model = vision
  ours, _ = pixels_for(SIDE)
  config = read_spec(folder).config
  save_hf(load(ViT(config), folder, ours), "clip_vision_model", config,
          tmp_path)
  again, info = transformers.CLIPVisionModel.from_pretrained(
      tmp_path, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  for name, value in model.state_dict().items():
    assert torch.equal(value, again.state_dict()[name]), name
  for field in VISION:
    if field != "projection_dim":
      assert getattr(again.config, field) == getattr(model.config, field)
  assert again.config.hidden_act == "quick_gelu"


@pytest.mark.parametrize("eos", [29, 2])
def test_whole_clip(whole, eos: int, tmp_path: Path) -> None:
  """Both towers, projections and temperature; also with the old end rule."""
  check_whole(*whole, eos, tmp_path, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("vision, text", [
    (dict(num_hidden_layers=1), dict(num_hidden_layers=4)),
    (dict(hidden_size=48, num_attention_heads=6),
     dict(hidden_size=32, num_attention_heads=4, hidden_act="gelu"))])
def test_whole_clip_at_more_shapes(
    vision: dict[str, Any], text: dict[str, Any], seed: int,
    tmp_path: Path) -> None:
  model = whole_model(tmp_path / "in", seed, vision, text)
  (tmp_path / "out").mkdir()
  check_whole(tmp_path / "in", model, 29, tmp_path / "out", seed)


def check_whole(folder: Path, model: transformers.CLIPModel, eos: int,
                tmp_path: Path, seed: int) -> None:
  """Embeddings and logits of both sides."""
  tokens = texts(seed)
  written = json.loads((folder / "config.json").read_text())
  written["text_config"]["eos_token_id"] = eos
  (tmp_path / "config.json").write_text(json.dumps(written))
  (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
  ours, theirs = pixels_for(SIDE, images=4, seed=seed)
  model.text_model.eos_token_id = eos
  with torch.no_grad():
    want = model(pixel_values=theirs,
                 input_ids=torch.from_numpy(tokens.astype(np.int64)))
  config = read_spec(tmp_path).config
  assert config.text.eos_token == eos
  dual = config.make()
  batch = {"images": jnp.zeros((1, 1, SIDE, SIDE, 3), jnp.uint8),
           "image_boxes": jnp.zeros((1, 1, 4), jnp.int32),
           "tokens": tokens[:1], "segment_ids": tokens[:1]}
  params = load(dual, tmp_path, batch)
  images = run(dual, params, ours, method="image_embeds")
  # Padding after the end cannot be seen, masked or not.
  ends = (tokens == 29).argmax(-1)
  segments = (np.arange(9) <= ends[:, None]).astype(np.int32)
  text = run(dual, params, tokens, segments, method="text_embeds")
  bare = run(dual, params, tokens, method="text_embeds")
  np.testing.assert_allclose(text, bare, atol=1e-6)
  assert difference(images, want.image_embeds) < TOLERANCE
  assert difference(text, want.text_embeds) < TOLERANCE
  logits = jnp.exp(params["logit_scale"]) * images @ text.T
  assert want.logits_per_image.std() > 1
  assert difference(logits, want.logits_per_image) < TOLERANCE


def test_text_peculiarities_matter(whole) -> None:
  """Causality, places and the place of the end."""
  folder, model = whole
  spec = read_spec(folder, part="text")
  from align_jax.towers.text import TextTower
  tower, tokens = TextTower(spec.config), texts()
  params = load(tower, folder, tokens, part="text")
  with torch.no_grad():
    want = model.text_model(
        input_ids=torch.from_numpy(tokens.astype(np.int64))).pooler_output
  got = run(tower, params, tokens)
  assert difference(got, want) < TOLERANCE
  early = dataclasses.replace(spec.config, eos_token=int(tokens[0, 2]))
  assert difference(
      run(TextTower(early), params, tokens), want) > BROKEN
  placeless = params | {"position_pc": 0 * params["position_pc"]}
  assert difference(
      run(tower, placeless, tokens), want) > BROKEN
  # Seen from the end, which comes last here, a change before it counts ...
  changed = tokens.copy()
  changed[0, 0] = (changed[0, 0] + 1) % 29
  moved = run(tower, params, changed)
  assert np.abs(moved - got)[0].max() > BROKEN
  # ... and one after it does not.
  changed = tokens.copy()
  changed[1, 4:] = 7
  np.testing.assert_allclose(
      run(tower, params, changed), got, atol=1e-6)


def test_whole_clip_round_trip(whole, tmp_path: Path) -> None:
  folder, model = whole
  config = read_spec(folder).config
  batch = {"images": jnp.zeros((1, 1, SIDE, SIDE, 3), jnp.uint8),
           "image_boxes": jnp.zeros((1, 1, 4), jnp.int32),
           "tokens": texts()[:1], "segment_ids": texts()[:1]}
  save_hf(load(config.make(), folder, batch), "clip", config, tmp_path)
  again, info = transformers.CLIPModel.from_pretrained(
      tmp_path, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  for name, value in model.state_dict().items():
    assert torch.equal(value, again.state_dict()[name]), name
  assert read_spec(tmp_path).config == config


def test_the_tower_of_the_whole(whole) -> None:
  folder, model = whole
  ours, theirs = pixels_for(SIDE)
  with torch.no_grad():
    want = model.vision_model(pixel_values=theirs, output_hidden_states=True)
  got = load_tower(folder, layer=-2)(ours)
  assert difference(got, want.hidden_states[-2][:, 1:]) < TOLERANCE


def test_foreign_features_are_refused_by_name(vision, tmp_path: Path) -> None:
  folder, _ = vision
  written = json.loads((folder / "config.json").read_text())
  written |= {"hidden_act": "relu", "window_size": 7, "num_channels": 4}
  (tmp_path / "config.json").write_text(json.dumps(written))
  with pytest.raises(ValueError) as caught:
    read_spec(tmp_path)
  for part in ("hidden_act 'relu'", "window_size = 7", "num_channels 4"):
    assert part in str(caught.value)


def test_a_tower_unlike_clip_is_not_written_as_clip(tmp_path: Path) -> None:
  from align_jax.towers import TOWERS
  config = TOWERS.get("siglip")(image_size=16, patch_size=8, width=8, layers=1,
                                heads=2, mlp_width=8)
  params = jax.tree.map(
      lambda leaf: np.zeros(leaf.shape, np.float32),
      jax.eval_shape(ViT(config).init, jax.random.key(0),
                     jnp.zeros((1, 16, 16, 3)))["params"])
  with pytest.raises((InputError, ValueError), match="as CLIP|no place"):
    save_hf(params, "clip_vision_model", config, tmp_path)
