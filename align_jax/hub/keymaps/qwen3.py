"""Qwen3, as transformers' Qwen3ForCausalLM: norms on queries and keys."""

import dataclasses
from typing import Any

from align_jax.decoders.transformer import DecoderConfig
from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps import qwen2
from align_jax.hub.keymaps.decoder_config import faithful
from align_jax.hub.keymaps.llama import LLAMA

QK_NORM_RULES = {
    f"layers/{x}_norm_k": (f"model.layers.{{n}}.self_attn.{x}_norm.weight",
                           "k -> k") for x in "qk"}

DEFAULTS = qwen2.DEFAULTS | dict(head_width=128)


def read_config(hf: dict[str, Any]) -> DecoderConfig:
  """config.json -> DecoderConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields(hf)
  bias = fields.take("attention_bias", False)
  return fields.finish(DecoderConfig, qwen2.read_fields(fields, DEFAULTS)
                       | dict(qk_norm=True, qkv_bias=bias, o_bias=bias))


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """DecoderConfig -> config.json.

  Raises:
    InputError: it is no Qwen3; the message says why.
  """
  return faithful(config, {
      "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
      "attention_bias": config.qkv_bias,
  } | qwen2.write_fields(config), read_config)


QWEN3 = dataclasses.replace(
    LLAMA, kind="qwen3", models="Qwen3",
    rules=LLAMA.rules | QK_NORM_RULES,
    read_config=read_config, write_config=write_config)
