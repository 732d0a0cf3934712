"""EVA-CLIP's ViT-g, as in transformers' InstructBLIP and BLIP-2."""

from collections.abc import Callable
from typing import Any

from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps import Family
from align_jax.hub.keymaps.clip import (
    BLOCK_RULES,
    block_sizes,
    image_sizes,
    refuse_unlike,
    vision_fields,
)
from align_jax.towers.vit import ViTConfig, eva

_ATTENTION = "encoder.layers.{n}.self_attn."

RULES = {
    "patch_ijac": ("embeddings.patch_embedding.weight", "c a i j -> i j a c"),
    "patch_bias_c": ("embeddings.patch_embedding.bias", "c -> c"),
    "class_c": ("embeddings.class_embedding", "1 1 c -> c"),
    "position_pc": ("embeddings.position_embedding", "1 p c -> p c"),
    "post_norm_scale_c": ("post_layernorm.weight", "c -> c"),
    "post_norm_bias_c": ("post_layernorm.bias", "c -> c"),
    **BLOCK_RULES,
    # Queries, keys and values lie in one tensor. The bias of the keys, which
    # softmax does not see, is zero there.
    **{f"layers/{x}_chk": (_ATTENTION + "qkv.weight", f"(h k)@{n} c -> c h k")
       for n, x in enumerate("qkv")},
    **{f"layers/{x}_bias_hk": (_ATTENTION + "qkv.bias", f"(h k)@{n} -> h k")
       for n, x in enumerate("qkv")},
    "layers/o_hkc": (_ATTENTION + "projection.weight", "c (h k) -> h k c"),
    "layers/o_bias_c": (_ATTENTION + "projection.bias", "c -> c"),
}


def read_config(hf: dict[str, Any]) -> ViTConfig:
  """config.json of InstructBlipVisionModel or Blip2VisionModel -> ViTConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields({"model_type": "instructblip_vision_model"} | hf)
  fields.take("projection_dim", None)  # written by old versions, never read
  return fields.finish(eva, dict(
      **image_sizes(fields, patch=14),
      width=fields.take("hidden_size", 1408),
      heads=fields.take("num_attention_heads", 16),
      mlp_width=fields.take("intermediate_size", 6144),
      qkv_bias=fields.take("qkv_bias", True),
      **block_sizes(fields, "gelu", 1e-6, layers=39)))


def _writer(model_type: str, architecture: str
            ) -> Callable[[ViTConfig], dict[str, Any]]:

  def write_config(config: ViTConfig) -> dict[str, Any]:
    """ViTConfig -> config.json, or a ValueError that says what differs."""
    refuse_unlike(config, "EVA-CLIP", class_token=True, patch_bias=True,
                  pre_norm=False, post_norm="both", qkv_bias=...)
    return {"architectures": [architecture], "model_type": model_type,
            "qkv_bias": config.qkv_bias} | vision_fields(config)

  return write_config


def _family(model_type: str, architecture: str) -> Family:
  return Family(
      kind="eva",
      models="EVA-CLIP ViT-g, as there",
      rules=RULES,
      read_config=read_config,
      write_config=_writer(model_type, architecture),
      rename=((r"^vision_model\.", ""),),
      ignored=(r"embeddings\.position_ids$",),
  )


INSTRUCTBLIP_VISION = _family("instructblip_vision_model",
                              "InstructBlipVisionModel")
BLIP2_VISION = _family("blip_2_vision_model", "Blip2VisionModel")
