"""SigLIP and SigLIP2 of fixed resolution, as transformers' SiglipModel.

A SigLIP2 checkpoint of fixed resolution says `model_type: siglip` and has the
same layout; its vocabulary is larger, and what its texts are projected to may
differ from their width.
"""

from typing import Any

from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps import Family, Part, prefixed
from align_jax.hub.keymaps.clip import (
    BLOCK_RULES,
    TEXT_RULES,
    block_fields,
    block_sizes,
    image_sizes,
    refuse_unlike,
    vision_fields,
)
from align_jax.towers.clip import DualConfig
from align_jax.towers.text import TextConfig
from align_jax.towers.vit import ViTConfig, siglip

# torch's MultiheadAttention holds q, k and v in one tensor.
_HEAD_RULES = {
    "head/probe_c": ("head.probe", "1 1 c -> c"),
    **{f"head/{x}_chk": ("head.attention.in_proj_weight",
                         f"(h k)@{n} c -> c h k")
       for n, x in enumerate("qkv")},
    **{f"head/{x}_bias_hk": ("head.attention.in_proj_bias",
                             f"(h k)@{n} -> h k")
       for n, x in enumerate("qkv")},
    "head/o_hkc": ("head.attention.out_proj.weight", "c (h k) -> h k c"),
    "head/o_bias_c": ("head.attention.out_proj.bias", "c -> c"),
    "head/norm_scale_c": ("head.layernorm.weight", "c -> c"),
    "head/norm_bias_c": ("head.layernorm.bias", "c -> c"),
    "head/up_cf": ("head.mlp.fc1.weight", "f c -> c f"),
    "head/up_bias_f": ("head.mlp.fc1.bias", "f -> f"),
    "head/down_fc": ("head.mlp.fc2.weight", "c f -> f c"),
    "head/down_bias_c": ("head.mlp.fc2.bias", "c -> c"),
}

VISION_RULES = {
    "patch_ijac": ("embeddings.patch_embedding.weight", "c a i j -> i j a c"),
    "patch_bias_c": ("embeddings.patch_embedding.bias", "c -> c"),
    "position_pc": ("embeddings.position_embedding.weight", "p c -> p c"),
    "post_norm_scale_c": ("post_layernorm.weight", "c -> c"),
    "post_norm_bias_c": ("post_layernorm.bias", "c -> c"),
    **BLOCK_RULES,
    **_HEAD_RULES,
}

RULES = {
    **prefixed(VISION_RULES, "tower/", "vision_model."),
    **prefixed(TEXT_RULES, "text/", "text_model."),
    "text_projection_ce": ("text_model.head.weight", "e c -> c e"),
    "text_projection_bias_e": ("text_model.head.bias", "e -> e"),
    "logit_scale": ("logit_scale", "1 ->"),
    "logit_bias": ("logit_bias", "1 ->"),
}


def read_vision_config(hf: dict[str, Any]) -> ViTConfig:
  """config.json of SiglipVisionModel -> ViTConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields({"model_type": "siglip_vision_model"} | hf)
  return fields.finish(siglip, dict(
      **image_sizes(fields, patch=16),
      head=fields.take("vision_use_head", True),
      width=fields.take("hidden_size", 768),
      heads=fields.take("num_attention_heads", 12),
      mlp_width=fields.take("intermediate_size", 3072),
      **block_sizes(fields, "gelu_pytorch_tanh", 1e-6)))


def read_text_config(hf: dict[str, Any]) -> TextConfig:
  """config.json of SiglipTextModel -> TextConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields({"model_type": "siglip_text_model"} | hf)
  fields.take("projection_size", None)  # of the whole model, not of the tower
  return fields.finish(TextConfig, dict(
      vocab_size=fields.take("vocab_size", 32_000),
      width=fields.take("hidden_size", 768),
      heads=fields.take("num_attention_heads", 12),
      mlp_width=fields.take("intermediate_size", 3072),
      max_positions=fields.take("max_position_embeddings", 64),
      eos_token=2, causal=False, pool="last",
      **block_sizes(fields, "gelu_pytorch_tanh", 1e-6)))


def read_config(hf: dict[str, Any]) -> DualConfig:
  """config.json of SiglipModel -> DualConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields(hf)
  fields.take("tie_word_embeddings", None)
  vision = fields.take("vision_config", None) or {}
  text = fields.take("text_config", None) or {}
  parts = dict(tower=fields.section(read_vision_config, vision),
               text=fields.section(read_text_config, text))
  return fields.finish(DualConfig if all(parts.values()) else dict, dict(
      embed_width=(text.get("projection_size")
                   or text.get("hidden_size", 768)), sigmoid=True, **parts))


def write_vision_config(config: ViTConfig) -> dict[str, Any]:
  """ViTConfig -> config.json of SiglipVisionModel.

  Raises:
    ValueError: the tower is no SigLIP tower; the message says why.
  """
  refuse_unlike(config, "SigLIP", class_token=False, patch_bias=True,
                pre_norm=False, post_norm="features", head=...)
  return {"architectures": ["SiglipVisionModel"],
          "model_type": "siglip_vision_model",
          "vision_use_head": config.head} | vision_fields(config)


def write_text_config(config: TextConfig) -> dict[str, Any]:
  """TextConfig -> the text_config of SiglipModel.

  Raises:
    ValueError: the tower is no SigLIP text tower; the message says why.
  """
  refuse_unlike(config, "SigLIP", causal=False, pool="last")
  return {
      "model_type": "siglip_text_model",
      "vocab_size": config.vocab_size,
      "max_position_embeddings": config.max_positions,
      # The reference's defaults lie outside of a small vocabulary.
      "bos_token_id": None,
      "eos_token_id": None,
      "pad_token_id": None,
  } | block_fields(config)


def write_config(config: DualConfig) -> dict[str, Any]:
  """DualConfig -> config.json of SiglipModel.

  Raises:
    ValueError: it is no SigLIP; the message says why.
  """
  refuse_unlike(config, "SigLIP", sigmoid=True)
  vision = write_vision_config(config.tower)
  vision.pop("architectures")
  text = write_text_config(config.text)
  text["projection_size"] = config.embed_width
  return {"architectures": ["SiglipModel"], "model_type": "siglip",
          "vision_config": vision, "text_config": text}


_IGNORED = (r"embeddings\.position_ids$",)

SIGLIP_VISION = Family(
    kind="siglip",
    models="SigLIP base, so400m; SigLIP2 of fixed resolution",
    rules=VISION_RULES,
    read_config=read_vision_config,
    write_config=write_vision_config,
    # transformers before 5 wrote this prefix.
    rename=((r"^vision_model\.", ""),),
    # Pools what the tower gives; where features alone are asked for, it stays
    # in the file.
    ignored=(r"^head\.", *_IGNORED),
)

SIGLIP_TEXT = Family(
    kind="siglip_text",
    rules=TEXT_RULES,
    read_config=read_text_config,
    write_config=write_text_config,
    rename=((r"^text_model\.", ""),),
    ignored=(r"^head\.", *_IGNORED),
)

SIGLIP = Family(
    kind="siglip",
    models="the same with the text side",
    rules=RULES,
    read_config=read_config,
    write_config=write_config,
    ignored=_IGNORED,
    parts={"tower": Part(SIGLIP_VISION, "vision_config", "vision_model."),
           "text": Part(SIGLIP_TEXT, "text_config", "text_model.")},
)
