"""The sizes of published checkpoints: every tensor has its place and shape.

No weights: the reference is built without memory (torch's meta device), ours
abstractly. A config is what its checkpoint's config.json says beyond the
defaults.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict

from align_jax.hub.pretrained import read_spec
from align_jax.hub.write import foreign_tensors
from align_jax.towers.clip import DualConfig

_L14 = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
            num_attention_heads=16, patch_size=14, projection_dim=768)
_L14_TEXT = dict(hidden_size=768, intermediate_size=3072,
                 num_attention_heads=12, projection_dim=768)
_SO400M = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27,
               num_attention_heads=16)
_GIANT = dict(hidden_size=1536, num_hidden_layers=40, num_attention_heads=24,
              use_swiglu_ffn=True, image_size=518)


def _clip(vision: dict[str, Any], text: dict[str, Any] | None = None,
          width: int = 512) -> tuple[str, str, dict[str, Any]]:
  return "CLIPModel", "CLIPConfig", dict(
      vision_config=vision, text_config=text or {}, projection_dim=width)


def _siglip(vision: dict[str, Any], text: dict[str, Any] | None = None
            ) -> tuple[str, str, dict[str, Any]]:
  return "SiglipModel", "SiglipConfig", dict(
      vision_config=vision, text_config=text or {})


# name -> (model, config, its fields), patches of an image, width
PUBLISHED: dict[str, tuple[tuple[str, str, dict[str, Any]], int, int]] = {
    "openai/clip-vit-large-patch14-336": (
        _clip(_L14 | dict(image_size=336), _L14_TEXT, 768), 576, 1024),
    "google/siglip-so400m-patch14-384": (
        _siglip(_SO400M | dict(image_size=384, patch_size=14),
                _SO400M), 729, 1152),
    "facebook/dinov2-giant": (
        ("Dinov2Model", "Dinov2Config", _GIANT), 1369, 1536),
    "Salesforce/instructblip-vicuna-7b": (
        ("InstructBlipVisionModel", "InstructBlipVisionConfig", {}), 256,
        1408),
}
MORE = {
    "openai/clip-vit-base-patch32": (_clip({}), 49, 768),
    "openai/clip-vit-base-patch16": (_clip(dict(patch_size=16)), 196, 768),
    "openai/clip-vit-large-patch14": (_clip(_L14, _L14_TEXT, 768), 256, 1024),
    "google/siglip-base-patch16-224": (_siglip({}), 196, 768),
    "google/siglip-base-patch16-384": (
        _siglip(dict(image_size=384)), 576, 768),
    "google/siglip-so400m-patch14-224": (
        _siglip(_SO400M | dict(patch_size=14), _SO400M), 256, 1152),
    "google/siglip2-base-patch16-224": (
        _siglip({}, dict(vocab_size=256_000)), 196, 768),
    "google/siglip2-so400m-patch14-384": (
        _siglip(_SO400M | dict(image_size=384, patch_size=14),
                _SO400M | dict(vocab_size=256_000)), 729, 1152),
    "google/siglip2-giant-opt-patch16-384": (
        _siglip(dict(hidden_size=1536, intermediate_size=6144, image_size=384,
                     num_hidden_layers=40, num_attention_heads=16),
                _SO400M | dict(vocab_size=256_000, projection_size=1536)),
        576, 1536),
    "facebook/dinov2-large": (
        ("Dinov2Model", "Dinov2Config", dict(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
            image_size=518)), 1369, 1024),
    "facebook/dinov2-with-registers-giant": (
        ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig",
         _GIANT | dict(patch_size=14)), 1369, 1536),
    "Salesforce/blip2-opt-2.7b": (
        ("Blip2VisionModel", "Blip2VisionConfig", {}), 256, 1408),
}


def check(name: str, folder: Path) -> None:
  (model, config, fields), patches, width = (PUBLISHED | MORE)[name]
  made = getattr(transformers, config)(**fields)
  made.save_pretrained(folder)
  with torch.device("meta"):
    theirs = getattr(transformers, model)(made).state_dict()
  spec = read_spec(folder)
  tower = getattr(spec.config, "tower", spec.config)
  assert (tower.patches, tower.width) == (patches, width)

  side, row = tower.image_size, jnp.zeros((1, 1), jnp.int32)
  pixels = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  if isinstance(spec.config, DualConfig):
    pixels = dict(images=jnp.zeros((1, 1, side, side, 3), jnp.uint8),
                  image_boxes=jnp.zeros((1, 1, 4), jnp.int32), tokens=row,
                  segment_ids=row)
  shapes = jax.eval_shape(
      lambda x: spec.config.make().init(jax.random.key(0), x), pixels)
  ours = {t.key: t.shape for t in foreign_tensors(
      spec.family, flatten_dict(shapes["params"], sep="/"))}
  want = {key: tuple(value.shape) for key, value in theirs.items()}
  if spec.kind == "dinov2":  # a running model has other names than its file
    assert sorted(_halved(ours)) == sorted(want.values())
  else:
    assert ours == want


def _halved(shapes: dict[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
  """Shapes of what a running DINOv2 holds: its gate apart from its value."""
  found = []
  for key, shape in shapes.items():
    fused = "weights_in" in key
    found += [(shape[0] // 2, *shape[1:])] * 2 if fused else [shape]
  return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_has_its_place(name: str, tmp_path: Path) -> None:
  check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_every_tensor_has_its_place_in_more_of_them(
    name: str, tmp_path: Path) -> None:
  check(name, tmp_path)


def test_configs_as_early_versions_wrote_them(tmp_path: Path) -> None:
  """With every default of the time, generation's among them."""
  old = {
      "add_cross_attention": False, "bad_words_ids": None, "bos_token_id": 0,
      "do_sample": False, "dropout": 0.0, "eos_token_id": 2, "id2label": {
          "0": "LABEL_0"}, "initializer_factor": 1.0, "is_decoder": False,
      "length_penalty": 1.0, "max_length": 20, "num_beams": 1,
      "pad_token_id": 1, "pruned_heads": {}, "return_dict": True,
      "temperature": 1.0, "tie_word_embeddings": True, "top_k": 50,
      "top_p": 1.0, "torch_dtype": None, "typical_p": 1.0, "prefix": None,
      "transformers_version": "4.16.0.dev0", "use_bfloat16": False}
  (tmp_path / "config.json").write_text(json.dumps({
      "_commit_hash": None, "architectures": ["CLIPModel"],
      "initializer_factor": 1.0, "logit_scale_init_value": 2.6592,
      "model_type": "clip", "projection_dim": 768, "torch_dtype": "float32",
      "text_config": old | _L14_TEXT | {
          "model_type": "clip_text_model", "vocab_size": 49408},
      "text_config_dict": _L14_TEXT,
      "vision_config": old | _L14 | {"model_type": "clip_vision_model"},
      "vision_config_dict": _L14}))
  config = read_spec(tmp_path).config
  assert config.tower.patches == 256 and config.text.eos_token == 2
  assert config.embed_width == 768
