"""Llama, as transformers' LlamaForCausalLM and as llama.cpp's GGUF."""

import dataclasses
from typing import Any

from align_jax.decoders.transformer import DecoderConfig
from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps import Family
from align_jax.ops.rope import Llama3Scaling

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


def _rope_scaling(fields: Fields) -> tuple[float, Llama3Scaling | None]:
  """(theta, scaling) out of either spelling of config.json.

  `rope_parameters` holds both since transformers 5; `rope_theta` and
  `rope_scaling` stood beside each other before.
  """
  rope = dict(fields.take("rope_scaling", None) or {})
  rope |= fields.take("rope_parameters", None) or {}
  theta = fields.take("rope_theta", 10_000.0)
  theta = float(rope.pop("rope_theta", theta))
  kind = rope.pop("rope_type", rope.pop("type", "default"))
  rope.pop("type", None)
  if kind == "default":
    fields.refuse_rest("rope_parameters", rope)
    return theta, None
  if kind != "llama3":
    fields.refuse("rope_type", kind, ("default", "llama3"))
    return theta, None
  names = ("factor", "low_freq_factor", "high_freq_factor",
           "original_max_position_embeddings")
  missing = [n for n in names if n not in rope]
  values = [rope.pop(n, 1) for n in names]
  fields.refuse_rest("rope_parameters", rope)
  if missing:
    fields.fault(f"rope_type 'llama3' without {', '.join(missing)}")
    return theta, None
  return theta, Llama3Scaling(*map(float, values[:3]), int(values[3]))


def read_config(hf: dict[str, Any]) -> DecoderConfig:
  """config.json -> DecoderConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields(hf)
  fields.expect("hidden_act", "silu")
  fields.expect("pretraining_tp", 1)
  theta, scaling = _rope_scaling(fields)
  heads = fields.take("num_attention_heads", 32)
  sizes = dict(
      vocab_size=fields.take("vocab_size", 32_000),
      width=fields.take("hidden_size", 4096),
      layers=fields.take("num_hidden_layers", 32),
      heads=heads,
      kv_heads=fields.take("num_key_value_heads", None) or heads,
      head_width=fields.take("head_dim", None) or 0,
      mlp_width=fields.take("intermediate_size", 11_008),
      rope_theta=theta,
      rope_scaling=scaling,
      norm_eps=fields.take("rms_norm_eps", 1e-6),
      tied_head=fields.take("tie_word_embeddings", False),
      max_positions=fields.take("max_position_embeddings", 2048),
      attn_bias=fields.take("attention_bias", False),
      mlp_bias=fields.take("mlp_bias", False),
  )
  return fields.finish(DecoderConfig, sizes)


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """DecoderConfig -> config.json."""
  c = config
  rope: dict[str, Any] = {"rope_theta": c.rope_theta, "rope_type": "default"}
  if c.rope_scaling is not None:
    s = c.rope_scaling
    rope |= {
        "rope_type": "llama3",
        "factor": s.factor,
        "low_freq_factor": s.low_freq_factor,
        "high_freq_factor": s.high_freq_factor,
        "original_max_position_embeddings": s.original_max_positions,
    }
  return {
      "architectures": ["LlamaForCausalLM"],
      "model_type": "llama",
      "hidden_act": "silu",
      "vocab_size": c.vocab_size,
      "hidden_size": c.width,
      "num_hidden_layers": c.layers,
      "num_attention_heads": c.heads,
      "num_key_value_heads": c.kv_heads,
      "head_dim": c.head_width,
      "intermediate_size": c.mlp_width,
      "rope_parameters": rope,
      "rms_norm_eps": c.norm_eps,
      "tie_word_embeddings": c.tied_head,
      "max_position_embeddings": c.max_positions,
      "attention_bias": c.attn_bias,
      "mlp_bias": c.mlp_bias,
  }


LLAMA = Family(
    kind="llama",
    rules=RULES,
    read_config=read_config,
    write_config=write_config,
    # A bare LlamaModel has no "model." before its keys.
    rename=((r"^(?!model\.|lm_head\.)", "model."),),
    # Written by some versions; a tied head is written by some, too.
    ignored=(r"rotary_emb\.inv_freq$", r"^lm_head\.weight$"),
)

LLAMA_GGUF = dataclasses.replace(
    LLAMA, rules=GGUF_RULES, rename=(), ignored=())
