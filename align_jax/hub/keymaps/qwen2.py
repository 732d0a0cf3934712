"""Qwen2 and 2.5, as transformers' Qwen2ForCausalLM.

Llama with biases on q, k and v, and windows in the later layers if asked.
"""

import dataclasses
from typing import Any

from align_jax.decoders.transformer import DecoderConfig
from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps.decoder_config import (
    faithful,
    read_rope,
    read_sizes,
    read_windows,
    write_rope,
    write_sizes,
    write_windows,
)
from align_jax.hub.keymaps.llama import LLAMA

DEFAULTS = dict(
    vocab_size=151_936, width=4096, layers=32, heads=32, kv_heads=32,
    mlp_width=22_016, norm_eps=1e-6, tied_head=False, max_positions=32_768)


def read_fields(fields: Fields, defaults: dict[str, Any]) -> dict[str, Any]:
  """What Qwen2 and Qwen3 share."""
  fields.expect("hidden_act", "silu")
  fields.expect("use_mrope", False)
  sizes = read_sizes(fields, defaults)
  window = fields.take("sliding_window", 4096)
  if not fields.take("use_sliding_window", False):
    window = None  # the number stands in the file all the same
  first = fields.take("max_window_layers", 28)
  windows = read_windows(fields, sizes["layers"], window,
                         lambda i: window is not None and i >= first)
  return dict(**sizes, **read_rope(fields, sizes["max_positions"]),
              windows=windows)


def write_fields(config: DecoderConfig) -> dict[str, Any]:
  """`read_fields` backwards."""
  return {
      "hidden_act": "silu",
      "rope_parameters": write_rope(config.rope_theta, config.rope_scaling),
      "use_sliding_window": any(config.windows),
  } | write_sizes(config) | write_windows(config)


def read_config(hf: dict[str, Any]) -> DecoderConfig:
  """config.json -> DecoderConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields(hf)
  return fields.finish(
      DecoderConfig, read_fields(fields, DEFAULTS) | dict(qkv_bias=True))


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """DecoderConfig -> config.json.

  Raises:
    InputError: it is no Qwen2; the message says why.
  """
  return faithful(config, {
      "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
  } | write_fields(config), read_config)


QWEN2 = dataclasses.replace(
    LLAMA, kind="qwen2", models="Qwen2, Qwen2.5",
    read_config=read_config, write_config=write_config)
