"""Gemma, as transformers' GemmaForCausalLM.

Llama with a tanh GELU, norms weighted by 1 + w, embeddings scaled by sqrt(D).
"""

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
    vocab_size=256_000, width=3072, layers=28, heads=16, kv_heads=16,
    head_width=256, mlp_width=24_576, norm_eps=1e-6, tied_head=True,
    max_positions=8192)


def read_fields(fields: Fields, defaults: dict[str, Any]) -> dict[str, Any]:
  """What all Gemmas share."""
  sizes = read_sizes(fields, defaults)
  bias = fields.take("attention_bias", False)
  # The first files said "gelu" and meant the tanh form, as all of them do.
  fields.expect("hidden_act", "gelu_pytorch_tanh", "gelu")
  fields.expect("hidden_activation", "gelu_pytorch_tanh", None)
  return dict(
      **sizes, qkv_bias=bias, o_bias=bias, activation="gelu_tanh",
      norm_offset=1.0, embed_scale=sizes["width"] ** 0.5)


def write_fields(config: DecoderConfig) -> dict[str, Any]:
  """`read_fields` backwards."""
  return {"attention_bias": config.qkv_bias} | write_sizes(config)


def read_config(hf: dict[str, Any]) -> DecoderConfig:
  """config.json -> DecoderConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields(hf)
  sizes = read_fields(fields, DEFAULTS)
  return fields.finish(
      DecoderConfig, sizes | read_rope(fields, sizes["max_positions"]))


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """DecoderConfig -> config.json.

  Raises:
    InputError: it is no Gemma; the message says why.
  """
  return faithful(config, {
      "architectures": ["GemmaForCausalLM"],
      "model_type": "gemma",
      "hidden_act": "gelu_pytorch_tanh",
      "rope_parameters": write_rope(config.rope_theta, config.rope_scaling),
  } | write_fields(config), read_config)


GEMMA = dataclasses.replace(
    LLAMA, kind="gemma", models="Gemma",
    read_config=read_config, write_config=write_config)
