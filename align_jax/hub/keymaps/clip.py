"""CLIP, as transformers' CLIPVisionModel, CLIPTextModel and CLIPModel."""

from typing import Any

from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps import Family, Part, prefixed
from align_jax.towers.clip import DualConfig
from align_jax.towers.text import TextConfig
from align_jax.towers.vit import ViTConfig

# transformers' names of activations: ours.
ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
}
FOREIGN_ACTIVATIONS = {ours: theirs for theirs, ours in ACTIVATIONS.items()}

_LAYER = "encoder.layers.{n}."

# Blocks have the same names in both towers, and in SigLIP's.
BLOCK_RULES = {
    **{f"layers/norm{i}_{ours}_c": (f"{_LAYER}layer_norm{i}.{theirs}", "c -> c")
       for i in (1, 2)
       for ours, theirs in (("scale", "weight"), ("bias", "bias"))},
    **{f"layers/{x}_chk": (f"{_LAYER}self_attn.{x}_proj.weight",
                           "(h k) c -> c h k") for x in "qkv"},
    **{f"layers/{x}_bias_hk": (f"{_LAYER}self_attn.{x}_proj.bias",
                               "(h k) -> h k") for x in "qkv"},
    "layers/o_hkc": (_LAYER + "self_attn.out_proj.weight", "c (h k) -> h k c"),
    "layers/o_bias_c": (_LAYER + "self_attn.out_proj.bias", "c -> c"),
    "layers/up_cf": (_LAYER + "mlp.fc1.weight", "f c -> c f"),
    "layers/up_bias_f": (_LAYER + "mlp.fc1.bias", "f -> f"),
    "layers/down_fc": (_LAYER + "mlp.fc2.weight", "c f -> f c"),
    "layers/down_bias_c": (_LAYER + "mlp.fc2.bias", "c -> c"),
}

VISION_RULES = {
    "patch_ijac": ("embeddings.patch_embedding.weight", "c a i j -> i j a c"),
    "class_c": ("embeddings.class_embedding", "c -> c"),
    "position_pc": ("embeddings.position_embedding.weight", "p c -> p c"),
    # "layrnorm" is how the reference spells it.
    "pre_norm_scale_c": ("pre_layrnorm.weight", "c -> c"),
    "pre_norm_bias_c": ("pre_layrnorm.bias", "c -> c"),
    "post_norm_scale_c": ("post_layernorm.weight", "c -> c"),
    "post_norm_bias_c": ("post_layernorm.bias", "c -> c"),
    **BLOCK_RULES,
}

TEXT_RULES = {
    "embed_vc": ("embeddings.token_embedding.weight", "v c -> v c"),
    "position_pc": ("embeddings.position_embedding.weight", "p c -> p c"),
    "final_norm_scale_c": ("final_layer_norm.weight", "c -> c"),
    "final_norm_bias_c": ("final_layer_norm.bias", "c -> c"),
    **BLOCK_RULES,
}

RULES = {
    **prefixed(VISION_RULES, "tower/", "vision_model."),
    **prefixed(TEXT_RULES, "text/", "text_model."),
    "image_projection_ce": ("visual_projection.weight", "e c -> c e"),
    "text_projection_ce": ("text_projection.weight", "e c -> c e"),
    "logit_scale": ("logit_scale", ""),
}


def block_sizes(fields: Fields, act: str, eps: float, layers: int = 12
                ) -> dict[str, Any]:
  """What image and text configs share; the arguments are the defaults."""
  fields.take("tie_word_embeddings", None)  # a tower has no head to tie
  activation = fields.take("hidden_act", act)
  if activation not in ACTIVATIONS:
    fields.refuse("hidden_act", activation, tuple(ACTIVATIONS))
  return dict(
      layers=fields.take("num_hidden_layers", layers),
      activation=ACTIVATIONS.get(activation, "gelu"),
      norm_eps=fields.take("layer_norm_eps", eps))


def image_sizes(fields: Fields, patch: int) -> dict[str, int]:
  """The geometry of a vision config; `patch` is the default."""
  fields.expect("num_channels", 3)
  return dict(image_size=_side(fields, "image_size", 224),
              patch_size=_side(fields, "patch_size", patch))


def _side(fields: Fields, name: str, default: int) -> int:
  side = fields.take(name, default)
  if isinstance(side, (list, tuple)):
    if len(set(side)) != 1:
      fields.refuse(name, side, ("a square",))
    side = side[0]
  return side


def read_vision_config(hf: dict[str, Any]) -> ViTConfig:
  """config.json of CLIPVisionModel -> ViTConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields({"model_type": "clip_vision_model"} | hf)
  fields.take("projection_dim", None)  # of the whole model, not of the tower
  return fields.finish(ViTConfig, dict(
      **image_sizes(fields, patch=32),
      width=fields.take("hidden_size", 768),
      heads=fields.take("num_attention_heads", 12),
      mlp_width=fields.take("intermediate_size", 3072),
      **block_sizes(fields, "quick_gelu", 1e-5)))


def read_text_config(hf: dict[str, Any]) -> TextConfig:
  """config.json of CLIPTextModel -> TextConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields({"model_type": "clip_text_model"} | hf)
  fields.take("projection_dim", None)
  return fields.finish(TextConfig, dict(
      vocab_size=fields.take("vocab_size", 49_408),
      width=fields.take("hidden_size", 512),
      heads=fields.take("num_attention_heads", 8),
      mlp_width=fields.take("intermediate_size", 2048),
      max_positions=fields.take("max_position_embeddings", 77),
      eos_token=fields.take("eos_token_id", 49_407),
      **block_sizes(fields, "quick_gelu", 1e-5)))


def read_config(hf: dict[str, Any]) -> DualConfig:
  """config.json of CLIPModel -> DualConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields(hf)
  fields.take("logit_scale_init_value", None)  # the file has the value
  # Once written beside each config; they hold what changed its defaults.
  vision = ((fields.take("vision_config", None) or {})
            | (fields.take("vision_config_dict", None) or {}))
  text = ((fields.take("text_config", None) or {})
          | (fields.take("text_config_dict", None) or {}))
  fields.take("tie_word_embeddings", None)
  parts = dict(tower=fields.section(read_vision_config, vision),
               text=fields.section(read_text_config, text))
  return fields.finish(DualConfig if all(parts.values()) else dict, dict(
      embed_width=fields.take("projection_dim", 512), **parts))


def block_fields(c: ViTConfig | TextConfig) -> dict[str, Any]:
  """What image and text configs share, in transformers' names."""
  return {
      "hidden_size": c.width,
      "intermediate_size": c.mlp_width,
      "num_hidden_layers": c.layers,
      "num_attention_heads": c.heads,
      "hidden_act": FOREIGN_ACTIVATIONS[c.activation],
      "layer_norm_eps": c.norm_eps,
  }


def vision_fields(config: ViTConfig) -> dict[str, Any]:
  """The sizes of a vision config, in transformers' names."""
  return block_fields(config) | {
      "image_size": config.learnt_size or config.image_size,
      "patch_size": config.patch_size,
      "num_channels": 3}


def write_vision_config(config: ViTConfig) -> dict[str, Any]:
  """ViTConfig -> config.json of CLIPVisionModel.

  Raises:
    ValueError: the tower is no CLIP tower; the message says why.
  """
  refuse_unlike(config, "CLIP", class_token=True, patch_bias=False,
                pre_norm=True, post_norm="pooled")
  return {"architectures": ["CLIPVisionModel"],
          "model_type": "clip_vision_model"} | vision_fields(config)


def write_text_config(config: TextConfig) -> dict[str, Any]:
  """TextConfig -> config.json of CLIPTextModel.

  Raises:
    ValueError: the tower is no CLIP text tower; the message says why.
  """
  refuse_unlike(config, "CLIP", causal=True, pool="eos")
  return {
      "architectures": ["CLIPTextModel"],
      "model_type": "clip_text_model",
      "vocab_size": config.vocab_size,
      "max_position_embeddings": config.max_positions,
      "eos_token_id": config.eos_token,
      # The reference's defaults lie outside of a small vocabulary.
      "bos_token_id": None,
      "pad_token_id": None,
  } | block_fields(config)


def write_config(config: DualConfig) -> dict[str, Any]:
  """DualConfig -> config.json of CLIPModel."""
  parts = {"vision_config": write_vision_config(config.tower),
           "text_config": write_text_config(config.text)}
  for part in parts.values():
    part.pop("architectures")
    part["projection_dim"] = config.embed_width
  return {"architectures": ["CLIPModel"], "model_type": "clip",
          "projection_dim": config.embed_width} | parts


# What a plain tower is; a family names in what its own may differ.
_PLAIN = dict(qkv_bias=True, biases=True, rms=False, patch_norm=False,
              gated=False, layer_scale=False, registers=0,
              mask_token=False, head=False, learnt_size=0)


def refuse_unlike(config: Any, family: str, **needed: Any) -> None:
  """Raises a ValueError that lists in what `config` differs from `needed`.

  Args:
    config: of a tower, or of a text tower.
    family: that it is to be written as.
    needed: values of fields; those of a tower that are not named have to be
      plain. `...` stands for any value.
  """
  plain = _PLAIN if isinstance(config, ViTConfig) else {}
  faults = [f"{name} is {getattr(config, name)!r}, not {value!r}"
            for name, value in (plain | needed).items()
            if value is not ... and getattr(config, name) != value]
  if faults:
    raise ValueError(f"this tower cannot be written as {family}: "
                     + "; ".join(faults))


_IGNORED = (r"embeddings\.position_ids$",)

CLIP_VISION = Family(
    kind="clip",
    models="CLIP B/32, B/16, L/14, L/14-336",
    rules=VISION_RULES,
    read_config=read_vision_config,
    write_config=write_vision_config,
    # transformers before 5 wrote this prefix.
    rename=((r"^vision_model\.", ""),),
    ignored=_IGNORED,
)

CLIP_TEXT = Family(
    kind="clip_text",
    rules=TEXT_RULES,
    read_config=read_text_config,
    write_config=write_text_config,
    rename=((r"^text_model\.", ""),),
    ignored=_IGNORED,
)

CLIP = Family(
    kind="clip",
    models="CLIP with its text side",
    rules=RULES,
    read_config=read_config,
    write_config=write_config,
    ignored=_IGNORED,
    parts={"tower": Part(CLIP_VISION, "vision_config", "vision_model."),
           "text": Part(CLIP_TEXT, "text_config", "text_model.")},
)
