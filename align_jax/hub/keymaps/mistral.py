"""Mistral, as transformers' MistralForCausalLM: Llama with a window."""

import dataclasses
from typing import Any

from align_jax.decoders.transformer import DecoderConfig
from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps.decoder_config import (
    faithful,
    read_rope,
    read_sizes,
    write_rope,
    write_sizes,
)
from align_jax.hub.keymaps.llama import LLAMA

DEFAULTS = dict(
    vocab_size=32_000, width=4096, layers=32, heads=32, kv_heads=8,
    mlp_width=14_336, norm_eps=1e-6, tied_head=False, max_positions=131_072)


def read_config(hf: dict[str, Any]) -> DecoderConfig:
  """config.json -> DecoderConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields(hf)
  fields.expect("hidden_act", "silu")
  sizes = read_sizes(fields, DEFAULTS)
  window = fields.take("sliding_window", 4096)
  return fields.finish(DecoderConfig, dict(
      **sizes, **read_rope(fields, sizes["max_positions"]),
      windows=(window,) * sizes["layers"] if window else ()))


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """DecoderConfig -> config.json.

  Raises:
    InputError: it is no Mistral; the message says why.
  """
  return faithful(config, {
      "architectures": ["MistralForCausalLM"],
      "model_type": "mistral",
      "hidden_act": "silu",
      "rope_parameters": write_rope(config.rope_theta, config.rope_scaling),
      "sliding_window": max(config.windows, default=0) or None,
  } | write_sizes(config), read_config)


MISTRAL = dataclasses.replace(
    LLAMA, kind="mistral", models="Mistral",
    read_config=read_config, write_config=write_config)
