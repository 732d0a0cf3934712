"""Phi-3, as transformers' Phi3ForCausalLM.

Llama with q, k and v in one tensor, gate and up in another, a window, and
LongRoPE in the long variants; a part of each head turned if asked.
"""

import dataclasses
from typing import Any

from align_jax.decoders.transformer import DecoderConfig
from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps.decoder_config import (
    faithful,
    read_sizes,
    rope_of,
    write_rope,
    write_sizes,
)
from align_jax.hub.keymaps.llama import LLAMA

_LAYER = "model.layers.{n}."

RULES = {
    "layers/q_dhk": (_LAYER + "self_attn.qkv_proj.weight",
                     "(h k)@0 d -> d h k"),
    "layers/k_dgk": (_LAYER + "self_attn.qkv_proj.weight",
                     "(g k)@-2 d -> d g k"),
    "layers/v_dgk": (_LAYER + "self_attn.qkv_proj.weight",
                     "(g k)@-1 d -> d g k"),
    "layers/gate_df": (_LAYER + "mlp.gate_up_proj.weight", "f@0 d -> d f"),
    "layers/up_df": (_LAYER + "mlp.gate_up_proj.weight", "f@1 d -> d f"),
}

# What LongRoPE was called in this family's first files.
_ALIASES = {"su": "longrope", "yarn": "longrope"}

DEFAULTS = dict(
    vocab_size=32_064, width=3072, layers=32, heads=32, mlp_width=8192,
    norm_eps=1e-5, tied_head=False, max_positions=4096)


def read_config(hf: dict[str, Any]) -> DecoderConfig:
  """config.json -> DecoderConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields(hf)
  fields.expect("hidden_act", "silu")
  fields.expect("embd_pdrop", 0)
  fields.expect("resid_pdrop", 0)
  for name in ("full_attn_mod", "interpolate_factor"):  # of Phi-4-mini
    fields.expect(name, 1)
  sizes = read_sizes(fields, DEFAULTS)
  rope = dict(fields.take("rope_scaling", None) or {})
  rope |= fields.take("rope_parameters", None) or {}
  share = rope.pop("partial_rotary_factor", None)
  share = fields.take("partial_rotary_factor", None) if share is None else share
  # The number beside the dict wins over the one inside it.
  original = fields.take("original_max_position_embeddings", 4096)
  if rope.get("rope_type", rope.get("type", "default")) != "default":
    rope["original_max_position_embeddings"] = original
  window = fields.take("sliding_window", None)
  head = sizes["head_width"] or sizes["width"] // sizes["heads"]
  return fields.finish(DecoderConfig, dict(
      **sizes,
      **rope_of(fields, "rope_parameters", rope, sizes["max_positions"],
                fields.take("rope_theta", None) or 10_000.0, _ALIASES),
      rotary_width=int(head * share) if share else 0,
      windows=(window,) * sizes["layers"] if window else ()))


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """DecoderConfig -> config.json.

  Raises:
    InputError: it is no Phi-3; the message says why.
  """
  rope = write_rope(config.rope_theta, config.rope_scaling)
  original = rope.pop("original_max_position_embeddings",
                      config.max_positions)
  rope["partial_rotary_factor"] = config.rotary_width / config.head_width
  return faithful(config, {
      "architectures": ["Phi3ForCausalLM"],
      "model_type": "phi3",
      "hidden_act": "silu",
      "rope_parameters": rope,
      "original_max_position_embeddings": original,
      "sliding_window": max(config.windows, default=0) or None,
      # The reference's default lies outside of a small vocabulary.
      "pad_token_id": None,
  } | write_sizes(config), read_config)


PHI3 = dataclasses.replace(
    LLAMA, kind="phi3", models="Phi-3",
    rules=LLAMA.rules | RULES,
    read_config=read_config, write_config=write_config)
