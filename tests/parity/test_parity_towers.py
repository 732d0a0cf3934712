"""DINOv2 and EVA-CLIP against transformers, weights going both ways."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers

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

TOLERANCE, BROKEN = 1e-4, 1e-2
SIZES = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
             image_size=24, patch_size=8)


class Case(NamedTuple):
  """A reference model; `read` is the side of the images it is given."""
  model: type
  config: type
  sizes: dict[str, Any]
  read: int
  first: int  # tokens before the patches


def _dino(read: int = 24, **sizes: Any) -> Case:
  return Case(transformers.Dinov2Model, transformers.Dinov2Config,
              SIZES | dict(mlp_ratio=2) | sizes, read, 1)


def _registers(read: int = 24, **sizes: Any) -> Case:
  sizes = SIZES | dict(mlp_ratio=2, num_register_tokens=3) | sizes
  return Case(transformers.Dinov2WithRegistersModel,
              transformers.Dinov2WithRegistersConfig, sizes, read,
              1 + sizes["num_register_tokens"])


def _eva(name: str, **sizes: Any) -> Case:
  return Case(getattr(transformers, f"{name}VisionModel"),
              getattr(transformers, f"{name}VisionConfig"),
              SIZES | dict(intermediate_size=48) | sizes,
              sizes.get("image_size", 24), 1)


def _aim(**sizes: Any) -> Case:
  return Case(transformers.Aimv2VisionModel, transformers.Aimv2VisionConfig,
              SIZES | dict(intermediate_size=48, use_head=False) | sizes,
              sizes.get("image_size", 24), 0)


CASES = {
    "dinov2, smaller images": _dino(read=24, image_size=40),
    "dinov2, SwiGLU": _dino(use_swiglu_ffn=True),
    "dinov2 with registers, smaller images": _registers(image_size=40),
    "instructblip": _eva("InstructBlip"),
    "aimv2": _aim(),
}
MORE = {
    "dinov2": _dino(),
    "dinov2, larger images": _dino(read=40, image_size=16),
    "dinov2, patches that do not fill the image": _dino(
        read=45, image_size=43),
    "dinov2, bare": _dino(qkv_bias=False, use_mask_token=False,
                          layer_norm_eps=1e-5, num_hidden_layers=1),
    "dinov2, SwiGLU, smaller images": _dino(
        read=24, image_size=56, use_swiglu_ffn=True, hidden_size=40),
    "dinov2 with registers": _registers(),
    "dinov2 with registers, larger images": _registers(
        read=48, image_size=24, num_register_tokens=1),
    "dinov2 with registers, SwiGLU": _registers(use_swiglu_ffn=True),
    "blip-2": _eva("Blip2"),
    "instructblip without biases": _eva("InstructBlip", qkv_bias=False),
    "instructblip, wide": _eva("InstructBlip", hidden_size=48, image_size=40,
                               patch_size=8, num_attention_heads=6),
    "aimv2, wide": _aim(hidden_size=48, image_size=40, patch_size=8,
                        num_attention_heads=6, rms_norm_eps=1e-3),
}


def make(case: Case, folder: Path, seed: int = 0) -> torch.nn.Module:
  """A random reference model, written with a processor beside it."""
  config = case.config(**case.sizes)
  config._attn_implementation = "eager"
  model = case.model(config).eval()
  randomise(model, seed)
  model.save_pretrained(folder)
  if issubclass(case.config, transformers.Dinov2Config | (
      transformers.Dinov2WithRegistersConfig)):
    transformers.BitImageProcessorPil(
        size={"shortest_edge": case.read + 4},
        crop_size={"height": case.read, "width": case.read},
    ).save_pretrained(folder)
  return model


def check(case: Case, folder: Path, model: torch.nn.Module,
          seed: int) -> None:
  """Features of several layers, with and without class token, and pooled."""
  ours, theirs = pixels_for(case.read, seed=seed)
  with torch.no_grad():
    want = model(pixel_values=theirs, output_hidden_states=True,
                 output_attentions=True)
  assert sharpness(want.attentions) > 0.15
  assert want.last_hidden_state.std() > 0.9
  tower = load_tower(folder)
  assert difference(tower(ours), want.last_hidden_state[:, case.first:]
                    ) < TOLERANCE
  for layer in {-2, -1 - case.sizes["num_hidden_layers"]}:
    hidden = want.hidden_states[layer]
    assert difference(tower(ours, layer=layer), hidden[:, case.first:]
                      ) < TOLERANCE, layer
  if not case.first:  # neither class token nor pooling
    return
  kept = tower(ours, layer=-2, with_class_token=True)
  hidden = want.hidden_states[-2]
  assert difference(kept, torch.cat(
      [hidden[:, :1], hidden[:, case.first:]], 1)) < TOLERANCE
  assert difference(tower.pooled(ours), want.pooler_output) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_features_and_pooled(name: str, tmp_path: Path) -> None:
  model = make(CASES[name], tmp_path)
  check(CASES[name], tmp_path, model, 0)
  round_trip(CASES[name], tmp_path, model, tmp_path / "again")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", CASES | MORE)
def test_features_and_pooled_at_more_shapes(name: str, seed: int,
                                            tmp_path: Path) -> None:
  case = (CASES | MORE)[name]
  model = make(case, tmp_path, seed)
  check(case, tmp_path, model, seed)
  round_trip(case, tmp_path, model, tmp_path / "again")


def round_trip(case: Case, folder: Path, model: torch.nn.Module,
               again: Path) -> None:
  """What we write, the reference reads, every tensor byte for byte."""
  tower = load_tower(folder)
  save_hf(tower.params, json.loads(
      (folder / "config.json").read_text())["model_type"], tower.config, again)
  loaded, info = case.model.from_pretrained(again, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  for name, value in model.state_dict().items():
    assert torch.equal(value, loaded.state_dict()[name]), name
  for field in case.sizes:
    assert getattr(loaded.config, field) == getattr(model.config, field), field


PECULIAR: dict[str, list[tuple[dict[str, Any], float]]] = {
    "dinov2, smaller images": [
        (dict(layer_scale=False), BROKEN), (dict(post_norm="none"), BROKEN),
        (dict(patch_bias=False), BROKEN), (dict(qkv_bias=False), BROKEN),
        (dict(activation="quick_gelu"), BROKEN),
        (dict(activation="gelu_tanh"), 2 * TOLERANCE),
        (dict(antialias=True), BROKEN), (dict(norm_eps=1e-1), BROKEN)],
    "dinov2, SwiGLU": [(dict(activation="gelu"), BROKEN)],
    "dinov2 with registers, smaller images": [
        (dict(registers=0), BROKEN), (dict(antialias=False), BROKEN)],
    "instructblip": [
        (dict(qkv_bias=False), BROKEN), (dict(post_norm="pooled"), BROKEN),
        (dict(activation="gelu_tanh"), 2 * TOLERANCE),
        (dict(pre_norm=True), BROKEN)],
    "aimv2": [
        (dict(patch_norm=False), BROKEN), (dict(post_norm="none"), BROKEN),
        (dict(activation="gelu"), BROKEN), (dict(norm_eps=1e-1), BROKEN),
        (dict(patch_bias=False), BROKEN)],
}


@pytest.mark.parametrize("name", PECULIAR)
def test_a_peculiarity_switched_off_breaks_parity(
    name: str, tmp_path: Path) -> None:
  case = CASES[name]
  model = make(case, tmp_path)
  ours, theirs = pixels_for(case.read)
  with torch.no_grad():
    want = model(pixel_values=theirs).last_hidden_state[:, case.first:]
  config = read_spec(tmp_path).config
  params = load(ViT(config), tmp_path, ours)
  ones = params["post_norm_scale_c"] * 0 + 1
  params = dict(pre_norm_scale_c=ones, pre_norm_bias_c=0 * ones) | params
  for change, enough in PECULIAR[name]:
    got = run(ViT(dataclasses.replace(config, **change)), params, ours)
    assert difference(got, want) > enough, change


def test_the_second_norm_of_the_pooled_token_matters(tmp_path: Path) -> None:
  """InstructBLIP's reference norms it twice; DINOv2's once."""
  case = CASES["instructblip"]
  model = make(case, tmp_path)
  ours, theirs = pixels_for(case.read)
  with torch.no_grad():
    want = model(pixel_values=theirs).pooler_output
  config = read_spec(tmp_path).config
  params = load(ViT(config), tmp_path, ours)
  once = dataclasses.replace(config, post_norm="features")
  got = run(ViT(once), params, ours, method="pooled")
  assert difference(got, want) > BROKEN


@pytest.mark.parametrize("model_type", ["instructblip", "blip-2"])
def test_the_tower_of_a_whole_model(model_type: str, tmp_path: Path) -> None:
  """In InstructBLIP's files the tower lies beside much else."""
  import safetensors.torch

  case = CASES["instructblip"]
  model = make(case, tmp_path / "tower")
  state = {f"vision_model.{k}": v for k, v in model.state_dict().items()}
  state["query_tokens"] = torch.zeros(1, 4, 8)
  safetensors.torch.save_file(state, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps({
      "model_type": model_type, "qformer_config": {"hidden_size": 8},
      "vision_config": json.loads(
          (tmp_path / "tower" / "config.json").read_text())}))
  ours, theirs = pixels_for(case.read)
  with torch.no_grad():
    want = model(pixel_values=theirs).last_hidden_state
  assert difference(load_tower(tmp_path)(ours), want[:, 1:]) < TOLERANCE
  with pytest.raises(ValueError, match={
      "instructblip": "text_config: .*'opt'",
      "blip-2": "named alone: connector, tower"}[model_type]):
    read_spec(tmp_path)


@pytest.mark.parametrize("name, changes, texts", [
    ("dinov2, SwiGLU",
     dict(hidden_act="relu", num_channels=1, window=7, image_size=[24, 32]),
     ["hidden_act 'relu'", "num_channels 1", "window = 7",
      "image_size [24, 32]"]),
    ("instructblip",
     dict(hidden_act="swish", rope_theta=1e4, num_attention_heads=5),
     ["hidden_act 'swish'", "rope_theta = 10000.0",
      "width 32 is no multiple of heads 5"]),
])
def test_what_is_not_implemented_is_refused_by_name(
    name: str, changes: dict[str, Any], texts: list[str], tmp_path: Path
    ) -> None:
  make(CASES[name], tmp_path)
  written = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps(written | changes))
  with pytest.raises(ValueError) as caught:
    read_spec(tmp_path)
  for text in texts:
    assert text in str(caught.value)


def _replaced(name: str, tmp_path: Path, **changes: Any) -> Callable[[], None]:
  make(CASES[name], tmp_path)
  spec = read_spec(tmp_path)
  config = dataclasses.replace(spec.config, **changes)
  return lambda: spec.family.write_config(config)


def test_a_tower_unlike_its_family_is_not_written(tmp_path: Path) -> None:
  for name, changes, text in (
      ("dinov2, SwiGLU", dict(pre_norm=True), "pre_norm is True, not False"),
      ("dinov2, SwiGLU", dict(mlp_width=33), "no whole mlp_ratio"),
      ("dinov2, SwiGLU", dict(registers=2), "registers is 2, not 0"),
      ("instructblip", dict(gated=True), "gated is True, not False")):
    with pytest.raises(ValueError, match=text):
      _replaced(name, tmp_path, **changes)()
