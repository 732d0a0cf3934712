"""Llama, as transformers' LlamaForCausalLM and as llama.cpp's GGUF."""

import dataclasses
from typing import Any

from align_jax.decoders.transformer import DecoderConfig
from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps import Family
from align_jax.hub.keymaps.decoder_config import (
    faithful,
    read_rope,
    read_sizes,
    write_rope,
    write_sizes,
)

_LAYER = "model.layers.{n}."

RULES = {
    "embed_vd": ("model.embed_tokens.weight", "v d -> v d"),
    "head_vd": ("lm_head.weight", "v d -> v d"),
    "final_norm_d": ("model.norm.weight", "d -> d"),
    "layers/attn_norm_d": (_LAYER + "input_layernorm.weight", "d -> d"),
    "layers/q_dhk": (_LAYER + "self_attn.q_proj.weight", "(h k) d -> d h k"),
    "layers/k_dgk": (_LAYER + "self_attn.k_proj.weight", "(g k) d -> d g k"),
    "layers/v_dgk": (_LAYER + "self_attn.v_proj.weight", "(g k) d -> d g k"),
    "layers/o_hkd": (_LAYER + "self_attn.o_proj.weight", "d (h k) -> h k d"),
    "layers/q_bias_hk": (_LAYER + "self_attn.q_proj.bias", "(h k) -> h k"),
    "layers/k_bias_gk": (_LAYER + "self_attn.k_proj.bias", "(g k) -> g k"),
    "layers/v_bias_gk": (_LAYER + "self_attn.v_proj.bias", "(g k) -> g k"),
    "layers/o_bias_d": (_LAYER + "self_attn.o_proj.bias", "d -> d"),
    "layers/mlp_norm_d": (
        _LAYER + "post_attention_layernorm.weight", "d -> d"),
    "layers/gate_df": (_LAYER + "mlp.gate_proj.weight", "f d -> d f"),
    "layers/up_df": (_LAYER + "mlp.up_proj.weight", "f d -> d f"),
    "layers/down_fd": (_LAYER + "mlp.down_proj.weight", "d f -> f d"),
    "layers/gate_bias_f": (_LAYER + "mlp.gate_proj.bias", "f -> f"),
    "layers/up_bias_f": (_LAYER + "mlp.up_proj.bias", "f -> f"),
    "layers/down_bias_d": (_LAYER + "mlp.down_proj.bias", "d -> d"),
}

# llama.cpp turns neighbours (2i, 2i + 1) where Hugging Face and we turn
# (i, i + K/2), so it stores the rows of q and k in the other order.
GGUF_RULES = {
    "embed_vd": ("token_embd.weight", "v d -> v d"),
    "head_vd": ("output.weight", "v d -> v d"),
    "final_norm_d": ("output_norm.weight", "d -> d"),
    "layers/attn_norm_d": ("blk.{n}.attn_norm.weight", "d -> d"),
    "layers/q_dhk": ("blk.{n}.attn_q.weight", "(h j 2) d -> d h (2 j)"),
    "layers/k_dgk": ("blk.{n}.attn_k.weight", "(g j 2) d -> d g (2 j)"),
    "layers/v_dgk": ("blk.{n}.attn_v.weight", "(g k) d -> d g k"),
    "layers/o_hkd": ("blk.{n}.attn_output.weight", "d (h k) -> h k d"),
    "layers/mlp_norm_d": ("blk.{n}.ffn_norm.weight", "d -> d"),
    "layers/gate_df": ("blk.{n}.ffn_gate.weight", "f d -> d f"),
    "layers/up_df": ("blk.{n}.ffn_up.weight", "f d -> d f"),
    "layers/down_fd": ("blk.{n}.ffn_down.weight", "d f -> f d"),
}


DEFAULTS = dict(
    vocab_size=32_000, width=4096, layers=32, heads=32, mlp_width=11_008,
    norm_eps=1e-6, tied_head=False, max_positions=2048)


def read_config(hf: dict[str, Any]) -> DecoderConfig:
  """config.json -> DecoderConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields(hf)
  fields.expect("hidden_act", "silu")
  fields.expect("pretraining_tp", 1)
  # What Llama itself is; SmolLM2's and Vicuna's files say it.
  fields.expect("is_llama_config", True)
  fields.expect("rope_interleaved", False)
  fields.take("max_sequence_length", None)
  sizes = read_sizes(fields, DEFAULTS)
  bias = fields.take("attention_bias", False)
  return fields.finish(DecoderConfig, dict(
      **sizes, **read_rope(fields, sizes["max_positions"]),
      qkv_bias=bias, o_bias=bias, mlp_bias=fields.take("mlp_bias", False)))


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """DecoderConfig -> config.json.

  Raises:
    InputError: it is no Llama; the message says why.
  """
  return faithful(config, {
      "architectures": ["LlamaForCausalLM"],
      "model_type": "llama",
      "hidden_act": "silu",
      "rope_parameters": write_rope(config.rope_theta, config.rope_scaling),
      "attention_bias": config.qkv_bias,
      "mlp_bias": config.mlp_bias,
  } | write_sizes(config), read_config)


LLAMA = Family(
    kind="llama",
    rules=RULES,
    read_config=read_config,
    write_config=write_config,
    # A bare LlamaModel has no "model." before its keys.
    rename=((r"^(?!model\.|lm_head\.)", "model."),),
    # Written by some versions; a tied head is written by some, too.
    ignored=(r"rotary_emb\.inv_freq$", r"^lm_head\.weight$"),
    models="Llama 2, 3, 3.1, 3.2, Vicuna, SmolLM2",
)

LLAMA_GGUF = dataclasses.replace(
    LLAMA, rules=GGUF_RULES, rename=(), ignored=())
