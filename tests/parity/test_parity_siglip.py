"""SigLIP and SigLIP2 of fixed resolution against transformers, both ways."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from align_jax.hub.pretrained import read_spec, save_hf
from align_jax.hub.tower_face import load_tower
from align_jax.towers.text import TextTower
from align_jax.towers.vit import ViT
from tests.parity.towers_reference import (
  difference,
  load,
  pixels_for,
  randomise,
  run,
  sharpness,
)

# As in so400m at 384 pixels, the patches do not fill the image.
SIDE, TOLERANCE, BROKEN = 27, 1e-4, 1e-2
VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3,
              num_attention_heads=4, image_size=SIDE, patch_size=8)
TEXT = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, vocab_size=30, max_position_embeddings=9,
            bos_token_id=0, eos_token_id=1, pad_token_id=1)
# SigLIP2's giant: the texts are narrower than the images.
TEXT2 = TEXT | dict(hidden_size=24, num_attention_heads=3, vocab_size=90,
                    projection_size=32)


def vision_model(folder: Path, seed: int = 0, **changes: Any
                 ) -> transformers.SiglipVisionModel:
  config = transformers.SiglipVisionConfig(**(VISION | changes))
  config._attn_implementation = "eager"
  model = transformers.SiglipVisionModel(config).eval()
  randomise(model, seed)
  model.save_pretrained(folder)
  return model


def whole_model(folder: Path, text: dict[str, Any], seed: int = 0
                ) -> transformers.SiglipModel:
  model = transformers.SiglipModel(transformers.SiglipConfig(
      vision_config=VISION, text_config=text)).eval()
  randomise(model, seed)
  model.save_pretrained(folder)
  return model


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory
           ) -> tuple[Path, transformers.SiglipVisionModel]:
  folder = tmp_path_factory.mktemp("siglip")
  return folder, vision_model(folder)


@pytest.fixture(scope="module", params=[TEXT, TEXT2], ids=["1", "2"])
def whole(request: pytest.FixtureRequest,
          tmp_path_factory: pytest.TempPathFactory
          ) -> tuple[Path, transformers.SiglipModel]:
  folder = tmp_path_factory.mktemp("whole_siglip")
  return folder, whole_model(folder, request.param)


def texts(vocabulary: int = 30, seed: int = 0) -> np.ndarray:
  """Four texts of differing length, padded with the end as in training."""
  tokens = np.random.default_rng(seed).integers(2, vocabulary, (4, 9))
  for row, end in zip(tokens, (8, 3, 5, 1)):
    row[end:] = 1
  return tokens.astype(np.int32)


def check(folder: Path, model: transformers.SiglipVisionModel, side: int,
          seed: int) -> None:
  """Features of all layers, and what the head pools."""
  ours, theirs = pixels_for(side, seed=seed)
  with torch.no_grad():
    want = model(pixel_values=theirs, output_hidden_states=True,
                 output_attentions=True)
  assert sharpness(want.attentions) > 0.2
  tower = load_tower(folder)
  assert difference(tower(ours), want.last_hidden_state) < TOLERANCE
  for layer in (-2, -1 - model.config.num_hidden_layers):
    got = tower(ours, layer=layer)
    assert difference(got, want.hidden_states[layer]) < TOLERANCE, layer
  if model.config.vision_use_head:
    assert want.pooler_output.std() > 0.9
    assert difference(tower.pooled(ours), want.pooler_output) < TOLERANCE


def test_features_and_pooled(siglip) -> None:
  check(*siglip, SIDE, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("changes", [
    dict(image_size=32), dict(hidden_size=48, num_attention_heads=6),
    dict(image_size=30, patch_size=10), dict(num_hidden_layers=1),
    dict(vision_use_head=False), dict(layer_norm_eps=1e-5)])
def test_features_and_pooled_at_more_shapes(
    changes: dict[str, Any], seed: int, tmp_path: Path) -> None:
  model = vision_model(tmp_path, seed, **changes)
  check(tmp_path, model, changes.get("image_size", SIDE), seed)


@pytest.mark.parametrize("change", [
    dict(activation="gelu"), dict(activation="quick_gelu"),
    dict(patch_bias=False), dict(post_norm="none")])
def test_a_peculiarity_switched_off_breaks_parity(siglip, change) -> None:
  """tanh-GELU differs from the exact one by little, which is still seen."""
  folder, model = siglip
  ours, theirs = pixels_for(SIDE)
  config = read_spec(folder).config
  params = load(ViT(config), folder, ours)
  with torch.no_grad():
    want = model(pixel_values=theirs).last_hidden_state
  got = run(ViT(dataclasses.replace(config, **change)), params, ours)
  enough = 2 * TOLERANCE if change == dict(activation="gelu") else BROKEN
  assert difference(got, want) > enough


def test_every_part_of_the_head_matters(siglip) -> None:
  folder, model = siglip
  ours, theirs = pixels_for(SIDE)
  with torch.no_grad():
    want = model(pixel_values=theirs).pooler_output
  tower = load_tower(folder)
  for name, value in tower.params["head"].items():
    # Softmax does not see what is added to all keys.
    changed = tower.params | {"head": tower.params["head"] | {name: 0 * value}}
    got = run(tower.module, changed, ours, method="pooled")
    assert (difference(got, want) > BROKEN) == (name != "k_bias_hk"), name


def test_writes_what_the_reference_reads(siglip, tmp_path: Path) -> None:
  folder, model = siglip
  tower = load_tower(folder)
  save_hf(tower.params, "siglip_vision_model", tower.config, tmp_path)
  again, info = transformers.SiglipVisionModel.from_pretrained(
      tmp_path, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  for name, value in model.state_dict().items():
    assert torch.equal(value, again.state_dict()[name]), name
  assert again.config.vision_use_head
  assert again.config.hidden_act == "gelu_pytorch_tanh"


def test_features_alone_leave_the_head_in_the_file(
    siglip, tmp_path: Path) -> None:
  """As the tower of a language model, which pools nothing."""
  folder, model = siglip
  ours, _ = pixels_for(SIDE)
  config = read_spec(folder).config
  params = load(ViT(config), folder, ours)
  assert "head" not in params
  save_hf(params, "siglip_vision_model",
          dataclasses.replace(config, head=False), tmp_path)
  again, info = transformers.SiglipVisionModel.from_pretrained(
      tmp_path, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  assert not again.config.vision_use_head
  for name, value in again.state_dict().items():
    assert torch.equal(value, model.state_dict()[name]), name
  with pytest.raises(ValueError, match="no class token to pool, and no pool"):
    load_tower(tmp_path).pooled(ours)


def check_whole(folder: Path, model: transformers.SiglipModel,
                seed: int) -> None:
  """Embeddings and logits; then the texts' tower alone."""
  tokens = texts(model.config.text_config.vocab_size, seed)
  ids = torch.from_numpy(tokens.astype(np.int64))
  ours, theirs = pixels_for(SIDE, images=4, seed=seed)
  with torch.no_grad():
    want = model(pixel_values=theirs, input_ids=ids)
  assert want.logits_per_image.std() > 1
  tower = load_tower(folder)
  module, params = tower.joint
  images = tower.image_embeds(ours)
  # The tower sees the padding, whatever is said of it.
  text = run(module, params, tokens, (tokens != 1).astype(np.int32),
             method="text_embeds")
  assert difference(images, want.image_embeds) < TOLERANCE
  assert difference(text, want.text_embeds) < TOLERANCE
  logits = (jnp.exp(params["logit_scale"]) * images @ text.T
            + params["logit_bias"])
  assert difference(logits, want.logits_per_image) < TOLERANCE
  assert tower(ours).shape == (4, 9, 32)  # features, after `joint` too


def test_whole_siglip(whole) -> None:
  check_whole(*whole, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("text", [
    TEXT, TEXT2, TEXT | dict(max_position_embeddings=12, num_hidden_layers=1)])
def test_whole_siglip_at_more_shapes(text: dict[str, Any], seed: int,
                                     tmp_path: Path) -> None:
  check_whole(tmp_path, whole_model(tmp_path, text, seed), seed)


def test_whole_siglip_round_trip(whole, tmp_path: Path) -> None:
  folder, model = whole
  config = read_spec(folder).config
  _, params = load_tower(folder).joint
  save_hf(params, "siglip", config, tmp_path)
  again, info = transformers.SiglipModel.from_pretrained(
      tmp_path, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  for name, value in model.state_dict().items():
    assert torch.equal(value, again.state_dict()[name]), name
  assert read_spec(tmp_path).config == config


def test_text_peculiarities_matter(whole) -> None:
  folder, model = whole
  spec = read_spec(folder, part="text")
  tokens = texts(model.config.text_config.vocab_size)
  tower = TextTower(spec.config)
  params = load(tower, folder, tokens, part="text")
  with torch.no_grad():
    want = model.text_model(
        input_ids=torch.from_numpy(tokens.astype(np.int64))
    ).last_hidden_state[:, -1]
  assert difference(run(tower, params, tokens), want) < TOLERANCE
  for change, enough in ((dict(causal=True), BROKEN),
                         (dict(pool="eos"), BROKEN),
                         (dict(activation="quick_gelu"), 20 * TOLERANCE)):
    other = TextTower(dataclasses.replace(spec.config, **change))
    assert difference(run(other, params, tokens), want) > enough, change
  # A shorter row is another text.
  assert difference(run(tower, params, tokens[:, :6]), want) > BROKEN


def test_faults_of_both_towers_are_listed_together(
    whole, tmp_path: Path) -> None:
  written = json.loads((whole[0] / "config.json").read_text())
  written["vision_config"] |= dict(hidden_act="relu", window_size=7)
  written["text_config"] |= dict(rope_theta=1e4)
  written["sliding_window"] = 3
  (tmp_path / "config.json").write_text(json.dumps(written))
  with pytest.raises(ValueError) as caught:
    read_spec(tmp_path)
  for text in ("hidden_act 'relu'", "window_size = 7", "rope_theta = 10000.0",
               "sliding_window = 3"):
    assert text in str(caught.value)


def test_texts_that_do_not_reach_the_images_are_refused(
    whole, tmp_path: Path) -> None:
  written = json.loads((whole[0] / "config.json").read_text())
  written["text_config"]["projection_size"] = 20
  (tmp_path / "config.json").write_text(json.dumps(written))
  with pytest.raises(ValueError, match="projected to 20, images are 32 wide"):
    read_spec(tmp_path)
