"""AIMv2, as transformers' Aimv2VisionModel and as the tower of its Ovis2.

They differ in what the patch embedding is called, and in what else stands in
their configs.
"""

from typing import Any

from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps import Family, Rules
from align_jax.hub.keymaps.clip import (
    FOREIGN_ACTIVATIONS,
    image_sizes,
    refuse_unlike,
)
from align_jax.towers.vit import ViTConfig, aimv2

_LAYER = "encoder.layers.{n}."


def _rules(patch: str) -> Rules:
  return {
      "patch_ijac": (f"embeddings.{patch}.weight", "c a i j -> i j a c"),
      "patch_bias_c": (f"embeddings.{patch}.bias", "c -> c"),
      "position_pc": ("embeddings.position_embedding.weight", "p c -> p c"),
      "patch_norm_scale_c": ("embeddings.rms_norm.weight", "c -> c"),
      "post_norm_scale_c": ("rms_norm.weight", "c -> c"),
      **{f"layers/norm{i}_scale_c": (f"{_LAYER}rms_norm{i}.weight", "c -> c")
         for i in (1, 2)},
      **{f"layers/{x}_chk": (f"{_LAYER}attention.{x}_proj.weight",
                             "(h k) c -> c h k") for x in "qkv"},
      "layers/o_hkc": (_LAYER + "attention.out_proj.weight",
                       "c (h k) -> h k c"),
      "layers/gate_cf": (_LAYER + "ffn.gate_proj.weight", "f c -> c f"),
      "layers/value_cf": (_LAYER + "ffn.up_proj.weight", "f c -> c f"),
      "layers/out_fc": (_LAYER + "ffn.down_proj.weight", "c f -> f c"),
  }


def _read(hf: dict[str, Any], model_type: str) -> ViTConfig:
  fields = Fields({"model_type": model_type} | hf)
  if model_type == "ovis2_vision":  # of the connector
    for name in ("hidden_stride", "num_visual_indicator_tokens",
                 "tokenize_function"):
      fields.take(name, None)
  else:
    if fields.take("use_head", True):  # what the class does without the field
      fields.refuse("use_head", True, (False,))
    fields.expect("is_native", False)
  fields.expect("hidden_act", "silu")
  fields.expect("qkv_bias", False)
  fields.expect("mlp_bias", False)
  return fields.finish(aimv2, dict(
      **image_sizes(fields, patch=14),
      width=fields.take("hidden_size", 1024),
      layers=fields.take("num_hidden_layers", 24),
      heads=fields.take("num_attention_heads", 8),
      mlp_width=fields.take("intermediate_size", 2816),
      norm_eps=fields.take("rms_norm_eps", 1e-5)))


def read_config(hf: dict[str, Any]) -> ViTConfig:
  """config.json of Aimv2VisionModel -> ViTConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  return _read(hf, "aimv2_vision_model")


def read_ovis2_config(hf: dict[str, Any]) -> ViTConfig:
  """The vision_config of Ovis2 -> ViTConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  return _read(hf, "ovis2_vision")


def write_config(config: ViTConfig) -> dict[str, Any]:
  """ViTConfig -> config.json of Aimv2VisionModel.

  Raises:
    ValueError: it is no AIMv2; the message says why.
  """
  refuse_unlike(config, "AIMv2", class_token=False, patch_bias=True,
                pre_norm=False, patch_norm=True, post_norm="features",
                rms=True, qkv_bias=False, biases=False, gated=True)
  return {
      "architectures": ["Aimv2VisionModel"],
      "model_type": "aimv2_vision_model",
      "hidden_size": config.width,
      "intermediate_size": config.mlp_width,
      "num_hidden_layers": config.layers,
      "num_attention_heads": config.heads,
      "hidden_act": FOREIGN_ACTIVATIONS[config.activation],
      "rms_norm_eps": config.norm_eps,
      "image_size": config.image_size,
      "patch_size": config.patch_size,
      "num_channels": 3,
      "qkv_bias": False,
      "mlp_bias": False,
      "use_head": False,
      "is_native": False,
  }


def _refuse(_: ViTConfig) -> dict[str, Any]:
  raise ValueError("the tower of an Ovis2 is written as an Aimv2VisionModel")


AIMV2_VISION = Family(kind="aimv2", rules=_rules("patch_embed"),
                      read_config=read_config, write_config=write_config,
                      models="AIMv2 (without its head)")
OVIS2_VISION = Family(kind="aimv2", rules=_rules("patch_embedding"),
                      read_config=read_ovis2_config, write_config=_refuse,
                      written_as="aimv2_vision_model")
