"""Gemma 3's language model, as transformers' Gemma3ForCausalLM (2503.19786).

Gemma 2 with norms on queries and keys in the place of the soft caps, five
layers with a window to one without, and a rotary base for each kind. The
larger ones come with a tower, as Gemma3ForConditionalGeneration: of these the
language model alone is read.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from align_jax.decoders.transformer import DecoderConfig
from align_jax.errors import InputError
from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps import Family, Part, gemma
from align_jax.hub.keymaps.decoder_config import (
    faithful,
    read_windows,
    rope_of,
    write_rope,
    write_windows,
)
from align_jax.hub.keymaps.gemma2 import NORM_RULES
from align_jax.hub.keymaps.llama import LLAMA
from align_jax.hub.keymaps.qwen3 import QK_NORM_RULES
from align_jax.hub.keymaps.whole_config import tied_as

DEFAULTS = dict(
    vocab_size=262_208, width=2304, layers=26, heads=8, kv_heads=4,
    head_width=256, mlp_width=9216, norm_eps=1e-6, tied_head=True,
    max_positions=131_072)
_THETA, _LOCAL_THETA = 1_000_000.0, 10_000.0


def _read_rope(fields: Fields, max_positions: int) -> dict[str, Any]:
  """Both bases and the scaling, out of either spelling.

  `rope_parameters` has a dict for each kind of layer since transformers 5;
  `rope_theta`, `rope_local_base_freq` and `rope_scaling`, which is of the
  layers without a window alone, stood beside each other before.
  """
  ropes = dict(fields.take("rope_parameters", None) or {})
  full = ((ropes.pop("full_attention", None) or {})
          | (fields.take("rope_scaling", None) or {}))
  local = ropes.pop("sliding_attention", None) or {}
  fields.refuse_rest("rope_parameters", ropes)
  found = rope_of(fields, "rope_parameters.full_attention", full,
                  max_positions, fields.take("rope_theta", None) or _THETA)
  local = rope_of(
      fields, "rope_parameters.sliding_attention", local, max_positions,
      fields.take("rope_local_base_freq", None) or _LOCAL_THETA)
  if local["rope_scaling"] is not None:
    fields.fault("rope_parameters.sliding_attention: a scaling in the layers "
                 "with a window is not implemented")
  return found | dict(local_rope_theta=local["rope_theta"])


def read_config(hf: dict[str, Any]) -> DecoderConfig:
  """config.json -> DecoderConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields(hf)
  sizes = gemma.read_fields(fields, DEFAULTS)
  turn = fields.take("sliding_window_pattern", 6)
  windows = read_windows(fields, sizes["layers"],
                         fields.take("sliding_window", 4096),
                         lambda i: (i + 1) % turn != 0)
  rope = _read_rope(fields, sizes["max_positions"])
  if not any(windows):
    rope["local_rope_theta"] = 0.0
  return fields.finish(DecoderConfig, dict(
      **sizes, **rope, windows=windows, post_norms=True, qk_norm=True,
      attn_scale=fields.take("query_pre_attn_scalar", 256) ** -0.5,
      logit_soft_cap=fields.take("final_logit_softcapping", None) or 0.0))


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """DecoderConfig -> config.json.

  Raises:
    InputError: it is no Gemma 3; the message says why.
  """
  return faithful(config, {
      "architectures": ["Gemma3ForCausalLM"],
      "model_type": "gemma3_text",
      "hidden_activation": "gelu_pytorch_tanh",
      "rope_parameters": {
          "full_attention": write_rope(config.rope_theta,
                                       config.rope_scaling),
          "sliding_attention": write_rope(
              config.local_rope_theta or _LOCAL_THETA, None)},
      "query_pre_attn_scalar": round(config.attn_scale ** -2),
      "final_logit_softcapping": config.logit_soft_cap or None,
  } | gemma.write_fields(config) | write_windows(config), read_config)


GEMMA3_TEXT = dataclasses.replace(
    LLAMA, kind="gemma3_text", models="Gemma 3 (text)",
    rules=LLAMA.rules | NORM_RULES | QK_NORM_RULES,
    read_config=read_config, write_config=write_config)


def _refuse(_: Any) -> Any:
  raise InputError("of a 'gemma3' model with a tower only the language model "
                   "is implemented; load its decoder")


def compose(raw: Mapping[str, Any]) -> Family:
  """The language model, its head tied where the whole config.json says so."""
  return Family(
      kind="gemma3", models="Gemma 3 with its tower", rules={},
      read_config=_refuse, write_config=_refuse,
      # The names inside a running model, which some versions wrote.
      rename=((r"^model\.language_model\.", "language_model.model."),
              (r"^lm_head\.", "language_model.lm_head.")),
      parts={"decoder": Part(tied_as(raw, GEMMA3_TEXT), "text_config",
                             "language_model.")},
      compose=compose)


GEMMA3 = compose({})
