"""DINOv2, as transformers' Dinov2Model and Dinov2WithRegistersModel.

The names are those in the files; a running model of transformers 5 splits
`weights_in` and calls the attention's parts q_proj, k_proj, v_proj, o_proj.
"""

from typing import Any

from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps import Family
from align_jax.hub.keymaps.clip import (
    block_sizes,
    image_sizes,
    refuse_unlike,
    vision_fields,
)
from align_jax.towers.vit import ViTConfig, dinov2

_LAYER = "encoder.layer.{n}."

RULES = {
    "patch_ijac": ("embeddings.patch_embeddings.projection.weight",
                   "c a i j -> i j a c"),
    "patch_bias_c": ("embeddings.patch_embeddings.projection.bias", "c -> c"),
    "class_c": ("embeddings.cls_token", "1 1 c -> c"),
    "position_pc": ("embeddings.position_embeddings", "1 p c -> p c"),
    "register_rc": ("embeddings.register_tokens", "1 r c -> r c"),
    "mask_c": ("embeddings.mask_token", "1 c -> c"),
    "post_norm_scale_c": ("layernorm.weight", "c -> c"),
    "post_norm_bias_c": ("layernorm.bias", "c -> c"),
    **{f"layers/norm{i}_{ours}_c": (f"{_LAYER}norm{i}.{theirs}", "c -> c")
       for i in (1, 2)
       for ours, theirs in (("scale", "weight"), ("bias", "bias"))},
    **{f"layers/{ours}_chk": (f"{_LAYER}attention.attention.{theirs}.weight",
                              "(h k) c -> c h k")
       for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value"))},
    **{f"layers/{ours}_bias_hk": (f"{_LAYER}attention.attention.{theirs}.bias",
                                  "(h k) -> h k")
       for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value"))},
    "layers/o_hkc": (_LAYER + "attention.output.dense.weight",
                     "c (h k) -> h k c"),
    "layers/o_bias_c": (_LAYER + "attention.output.dense.bias", "c -> c"),
    "layers/scale1_c": (_LAYER + "layer_scale1.lambda1", "c -> c"),
    "layers/scale2_c": (_LAYER + "layer_scale2.lambda1", "c -> c"),
    "layers/up_cf": (_LAYER + "mlp.fc1.weight", "f c -> c f"),
    "layers/up_bias_f": (_LAYER + "mlp.fc1.bias", "f -> f"),
    "layers/down_fc": (_LAYER + "mlp.fc2.weight", "c f -> f c"),
    "layers/down_bias_c": (_LAYER + "mlp.fc2.bias", "c -> c"),
    # SwiGLU, of the giant.
    "layers/gate_cf": (_LAYER + "mlp.weights_in.weight", "f@0 c -> c f"),
    "layers/gate_bias_f": (_LAYER + "mlp.weights_in.bias", "f@0 -> f"),
    "layers/value_cf": (_LAYER + "mlp.weights_in.weight", "f@1 c -> c f"),
    "layers/value_bias_f": (_LAYER + "mlp.weights_in.bias", "f@1 -> f"),
    "layers/out_fc": (_LAYER + "mlp.weights_out.weight", "c f -> f c"),
    "layers/out_bias_c": (_LAYER + "mlp.weights_out.bias", "c -> c"),
}


def _mlp_width(width: int, ratio: float, gated: bool) -> int:
  """Hidden units: SwiGLU has two thirds of them, rounded up to eights."""
  hidden = int(width * ratio)
  return (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden


def _read(hf: dict[str, Any], model_type: str) -> ViTConfig:
  fields = Fields({"model_type": model_type} | hf)
  for name in (
      # Of training alone.
      "attention_probs_dropout_prob", "hidden_dropout_prob", "drop_path_rate",
      "layerscale_value",
      # Of the backbone for dense prediction, which gives what we do not.
      "out_features", "out_indices", "stage_names", "apply_layernorm",
      "reshape_hidden_states"):
    fields.take(name, None)
  extra = dict(mask_token=fields.take("use_mask_token", True))
  if model_type == "dinov2_with_registers":
    extra = dict(mask_token=True, antialias=True,
                 registers=fields.take("num_register_tokens", 4))
  gated = fields.take("use_swiglu_ffn", False)
  width = fields.take("hidden_size", 768)
  sizes = image_sizes(fields, patch=16 if extra.get("registers") else 14)
  shared = block_sizes(fields, "gelu", 1e-6)
  return fields.finish(dinov2, dict(
      **sizes, **(shared | (dict(activation="silu") if gated else {})),
      width=width, gated=gated, **extra,
      heads=fields.take("num_attention_heads", 12),
      qkv_bias=fields.take("qkv_bias", True),
      mlp_width=_mlp_width(width, fields.take("mlp_ratio", 4), gated)))


def read_config(hf: dict[str, Any]) -> ViTConfig:
  """config.json of Dinov2Model -> ViTConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  return _read(hf, "dinov2")


def read_registers_config(hf: dict[str, Any]) -> ViTConfig:
  """config.json of Dinov2WithRegistersModel -> ViTConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  return _read(hf, "dinov2_with_registers")


def _write(config: ViTConfig, family: str, **needed: Any) -> dict[str, Any]:
  """What both layouts share, or a ValueError that says what does not fit."""
  refuse_unlike(config, family, **(dict(
      class_token=True, patch_bias=True, pre_norm=False, post_norm="features",
      layer_scale=True, qkv_bias=..., gated=..., mask_token=...,
      learnt_size=...) | needed))
  if config.gated and config.activation != "silu":
    raise ValueError(f"this tower cannot be written as {family}: activation "
                     f"is {config.activation!r}, a gate has 'silu'")
  ratios = [r for r in range(1, 65)
            if _mlp_width(config.width, r, config.gated) == config.mlp_width]
  if not ratios:
    raise ValueError(
        f"this tower cannot be written as {family}: mlp_width "
        f"{config.mlp_width} follows from no whole mlp_ratio of width "
        f"{config.width}")
  fields = vision_fields(config)
  del fields["intermediate_size"]
  if config.gated:
    fields["hidden_act"] = "gelu"  # not read; SwiGLU has its own
  return fields | {"mlp_ratio": ratios[0], "qkv_bias": config.qkv_bias,
                   "use_swiglu_ffn": config.gated}


def write_config(config: ViTConfig) -> dict[str, Any]:
  """ViTConfig -> config.json of Dinov2Model.

  Raises:
    ValueError: the tower is no DINOv2; the message says why.
  """
  return _write(config, "DINOv2", antialias=False) | {
      "architectures": ["Dinov2Model"], "model_type": "dinov2",
      "use_mask_token": config.mask_token}


def write_registers_config(config: ViTConfig) -> dict[str, Any]:
  """ViTConfig -> config.json of Dinov2WithRegistersModel.

  Raises:
    ValueError: the tower is no DINOv2 with registers; the message says why.
  """
  return _write(config, "DINOv2 with registers", antialias=True,
                mask_token=True, registers=...) | {
      "architectures": ["Dinov2WithRegistersModel"],
      "model_type": "dinov2_with_registers",
      "num_register_tokens": config.registers}


DINOV2 = Family(
    kind="dinov2",
    models="DINOv2",
    rules=RULES,
    read_config=read_config,
    write_config=write_config,
    resamples=True,
)

DINOV2_REGISTERS = Family(
    kind="dinov2",
    models="DINOv2 with registers",
    rules=RULES,
    read_config=read_registers_config,
    write_config=write_registers_config,
    resamples=True,
)
