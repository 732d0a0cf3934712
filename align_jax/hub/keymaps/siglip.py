"""SigLIP's vision tower, as transformers' SiglipVisionModel and SiglipModel.

Features alone are read: the attention pooling head and, of a whole model, all
but the part "tower" are left in the file.
"""

from typing import Any

from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps import Family, Part, prefixed
from align_jax.hub.keymaps.clip import (
    BLOCK_RULES,
    block_sizes,
    image_sizes,
    refuse_unlike,
    vision_fields,
)
from align_jax.towers.vit import ViTConfig, siglip

RULES = {
    "patch_ijac": ("embeddings.patch_embedding.weight", "c a i j -> i j a c"),
    "patch_bias_c": ("embeddings.patch_embedding.bias", "c -> c"),
    "position_pc": ("embeddings.position_embedding.weight", "p c -> p c"),
    "post_norm_scale_c": ("post_layernorm.weight", "c -> c"),
    "post_norm_bias_c": ("post_layernorm.bias", "c -> c"),
    **BLOCK_RULES,
}


def read_vision_config(hf: dict[str, Any]) -> ViTConfig:
  """config.json of SiglipVisionModel -> ViTConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields({"model_type": "siglip_vision_model"} | hf)
  # Pools what the tower gives; features are taken before it.
  fields.take("vision_use_head", True)
  return fields.finish(siglip, dict(
      **image_sizes(fields, patch=16),
      width=fields.take("hidden_size", 768),
      heads=fields.take("num_attention_heads", 12),
      mlp_width=fields.take("intermediate_size", 3072),
      **block_sizes(fields, "gelu_pytorch_tanh", 1e-6)))


def read_config(hf: dict[str, Any]) -> ViTConfig:
  """config.json of SiglipModel -> ViTConfig of its vision tower."""
  return read_vision_config(hf.get("vision_config") or {})


def write_vision_config(config: ViTConfig) -> dict[str, Any]:
  """ViTConfig -> config.json of SiglipVisionModel, without a pooling head.

  Raises:
    ValueError: the tower is no SigLIP tower; the message says why.
  """
  refuse_unlike(config, "SigLIP", class_token=False, patch_bias=True,
                pre_norm=False, post_norm="features")
  return {"architectures": ["SiglipVisionModel"],
          "model_type": "siglip_vision_model",
          "vision_use_head": False} | vision_fields(config)


SIGLIP_VISION = Family(
    kind="siglip",
    rules=RULES,
    read_config=read_vision_config,
    write_config=write_vision_config,
    # transformers before 5 wrote this prefix.
    rename=((r"^vision_model\.", ""),),
    ignored=(r"^head\.", r"embeddings\.position_ids$"),
)

SIGLIP = Family(
    kind="siglip",
    rules=prefixed(RULES, "", "vision_model."),
    read_config=read_config,
    write_config=write_vision_config,
    parts={"tower": Part(SIGLIP_VISION, "vision_config", "vision_model.")},
)
