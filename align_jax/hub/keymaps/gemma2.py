"""Gemma 2, as transformers' Gemma2ForCausalLM (arXiv 2408.00118).

Gemma with soft caps on logits, norms after attention and MLP too, a window in
every other layer, and attention scaled by a number of its own.
"""

import dataclasses
from typing import Any

from align_jax.decoders.transformer import DecoderConfig
from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps import gemma
from align_jax.hub.keymaps.decoder_config import (
    faithful,
    read_rope,
    read_windows,
    write_rope,
    write_windows,
)
from align_jax.hub.keymaps.llama import LLAMA

_LAYER = "model.layers.{n}."

# Llama's "post_attention_layernorm" comes before the MLP; here it says so.
NORM_RULES = {
    "layers/mlp_norm_d": (_LAYER + "pre_feedforward_layernorm.weight",
                          "d -> d"),
    "layers/post_attn_norm_d": (_LAYER + "post_attention_layernorm.weight",
                                "d -> d"),
    "layers/post_mlp_norm_d": (_LAYER + "post_feedforward_layernorm.weight",
                               "d -> d"),
}

DEFAULTS = dict(
    vocab_size=256_000, width=2304, layers=26, heads=8, kv_heads=4,
    head_width=256, mlp_width=9216, norm_eps=1e-6, tied_head=True,
    max_positions=8192)


def read_config(hf: dict[str, Any]) -> DecoderConfig:
  """config.json -> DecoderConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields(hf)
  sizes = gemma.read_fields(fields, DEFAULTS)
  window = fields.take("sliding_window", 4096)
  fields.expect("sliding_window_size", window)  # its first name
  return fields.finish(DecoderConfig, dict(
      **sizes, **read_rope(fields, sizes["max_positions"]),
      post_norms=True,
      windows=read_windows(fields, sizes["layers"], window,
                           lambda i: i % 2 == 0),
      attn_scale=fields.take("query_pre_attn_scalar", 256) ** -0.5,
      attn_soft_cap=fields.take("attn_logit_softcapping", 50.0) or 0.0,
      logit_soft_cap=fields.take("final_logit_softcapping", 30.0) or 0.0))


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """DecoderConfig -> config.json.

  Raises:
    InputError: it is no Gemma 2; the message says why.
  """
  return faithful(config, {
      "architectures": ["Gemma2ForCausalLM"],
      "model_type": "gemma2",
      "hidden_activation": "gelu_pytorch_tanh",
      "rope_parameters": write_rope(config.rope_theta, config.rope_scaling),
      "query_pre_attn_scalar": round(config.attn_scale ** -2),
      "attn_logit_softcapping": config.attn_soft_cap or None,
      "final_logit_softcapping": config.logit_soft_cap or None,
  } | gemma.write_fields(config) | write_windows(config), read_config)


GEMMA2 = dataclasses.replace(
    LLAMA, kind="gemma2", models="Gemma 2",
    rules=LLAMA.rules | NORM_RULES,
    read_config=read_config, write_config=write_config)
