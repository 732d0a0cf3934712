"""Sizes of published models, so that a config can be planned without weights.

Each entry is what the model's own config.json says, read as a folder's would
be. A part of a config names one, `published="llama31_8b"`; to train it gives
the weights too.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from align_jax.errors import InputError
from align_jax.hub.keymaps import FAMILIES
from align_jax.hub.pretrained import with_processor
from align_jax.registry import nearest


@dataclasses.dataclass(frozen=True)
class Published:
  """A model by its config.json.

  Attributes:
    repo: its name on the Hugging Face hub, whose config.json is the source.
    config: of that file, what says sizes.
    pixels: of its preprocessor_config.json, where that says another size.
  """
  repo: str
  config: Mapping[str, Any]
  pixels: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _llama3(repo: str, factor: float, **sizes: Any) -> Published:
  return Published(repo, dict(
      model_type="llama", hidden_act="silu", vocab_size=128_256,
      num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=500_000.0,
      max_position_embeddings=131_072, rope_scaling=dict(
          rope_type="llama3", factor=factor, low_freq_factor=1.0,
          high_freq_factor=4.0, original_max_position_embeddings=8192),
      **sizes))


def _vicuna(repo: str, **sizes: Any) -> Published:
  return Published(repo, dict(
      model_type="llama", hidden_act="silu", vocab_size=32_000,
      rms_norm_eps=1e-5, rope_theta=10_000.0, max_position_embeddings=4096,
      tie_word_embeddings=False, **sizes))


PUBLISHED: dict[str, Published] = {
    "llama32_1b": _llama3(
        "meta-llama/Llama-3.2-1B", 32.0, hidden_size=2048,
        num_hidden_layers=16, num_attention_heads=32, head_dim=64,
        intermediate_size=8192, tie_word_embeddings=True),
    "llama32_3b": _llama3(
        "meta-llama/Llama-3.2-3B", 32.0, hidden_size=3072,
        num_hidden_layers=28, num_attention_heads=24, head_dim=128,
        intermediate_size=8192, tie_word_embeddings=True),
    "llama31_8b": _llama3(
        "meta-llama/Llama-3.1-8B", 8.0, hidden_size=4096,
        num_hidden_layers=32, num_attention_heads=32,
        intermediate_size=14_336, tie_word_embeddings=False),
    "llama31_70b": _llama3(
        "meta-llama/Llama-3.1-70B", 8.0, hidden_size=8192,
        num_hidden_layers=80, num_attention_heads=64,
        intermediate_size=28_672, tie_word_embeddings=False),
    "llama3_8b": Published("meta-llama/Meta-Llama-3-8B-Instruct", dict(
        model_type="llama", hidden_act="silu", vocab_size=128_256,
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, intermediate_size=14_336, rms_norm_eps=1e-5,
        rope_theta=500_000.0, max_position_embeddings=8192,
        tie_word_embeddings=False)),
    "vicuna_7b": _vicuna(
        "lmsys/vicuna-7b-v1.5", hidden_size=4096, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=32,
        intermediate_size=11_008),
    "vicuna_13b": _vicuna(
        "lmsys/vicuna-13b-v1.5", hidden_size=5120, num_hidden_layers=40,
        num_attention_heads=40, num_key_value_heads=40,
        intermediate_size=13_824),
    "smollm2_135m": Published("HuggingFaceTB/SmolLM2-135M-Instruct", dict(
        model_type="llama", hidden_act="silu", vocab_size=49_152,
        hidden_size=576, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, intermediate_size=1536, rms_norm_eps=1e-5,
        rope_theta=100_000.0, max_position_embeddings=8192,
        tie_word_embeddings=True)),
    "gemma_2b": Published("google/gemma-2b", dict(
        model_type="gemma", hidden_act="gelu", vocab_size=256_000,
        hidden_size=2048, num_hidden_layers=18, num_attention_heads=8,
        num_key_value_heads=1, head_dim=256, intermediate_size=16_384,
        rms_norm_eps=1e-6, rope_theta=10_000.0,
        max_position_embeddings=8192)),
    "phi3_mini": Published("microsoft/Phi-3-mini-4k-instruct", dict(
        model_type="phi3", hidden_act="silu", vocab_size=32_064,
        hidden_size=3072, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, intermediate_size=8192, rms_norm_eps=1e-5,
        rope_theta=10_000.0, max_position_embeddings=4096,
        original_max_position_embeddings=4096, sliding_window=2047,
        tie_word_embeddings=False)),
    "siglip_so400m_384": Published("google/siglip-so400m-patch14-384", dict(
        model_type="siglip_vision_model", hidden_size=1152,
        intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16,
        image_size=384, patch_size=14, hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6)),
    "clip_l14_336": Published("openai/clip-vit-large-patch14-336", dict(
        model_type="clip_vision_model", hidden_size=1024,
        intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14, hidden_act="quick_gelu",
        layer_norm_eps=1e-5, projection_dim=768)),
    "clip_l14": Published("openai/clip-vit-large-patch14", dict(
        model_type="clip_vision_model", hidden_size=1024,
        intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=224, patch_size=14, hidden_act="quick_gelu",
        layer_norm_eps=1e-5, projection_dim=768)),
    # Learnt at 518 pixels a side; its processor cuts out 224.
    "dinov2_l": Published("facebook/dinov2-large", dict(
        model_type="dinov2", hidden_size=1024, num_hidden_layers=24,
        num_attention_heads=16, mlp_ratio=4, image_size=518, patch_size=14,
        hidden_act="gelu", layer_norm_eps=1e-6), dict(
            do_center_crop=True, crop_size=dict(height=224, width=224))),
    "eva_g": Published("Salesforce/instructblip-vicuna-7b", dict(
        model_type="instructblip_vision_model", hidden_size=1408,
        intermediate_size=6144, num_hidden_layers=39, num_attention_heads=16,
        image_size=224, patch_size=14, hidden_act="gelu",
        layer_norm_eps=1e-6, qkv_bias=True)),
}


def read_published(name: str, part: str = "") -> tuple[str, Any]:
  """(registered kind, its own config) of a published model.

  Args:
    name: a key of PUBLISHED.
    part: "tower" or "decoder", for the error's words.

  Raises:
    InputError: there is no such model.
  """
  if name not in PUBLISHED:
    where = f"model.{part}.published: " if part else ""
    raise InputError(f"{where}{name!r} is none of "
                     f"{', '.join(PUBLISHED)}{nearest(name, PUBLISHED)}")
  config = dict(PUBLISHED[name].config)
  family = FAMILIES.get(config["model_type"])
  read = family.read_config(config)
  if pixels := PUBLISHED[name].pixels:
    read = with_processor(read, pixels, family.resamples)
  return family.kind, read
