"""Idefics2's perceiver and its language model, out of transformers'
Idefics2ForConditionalGeneration.

Its tower reads images of any size and shape, each with positions of its own;
that is not implemented.
"""

from collections.abc import Mapping
from typing import Any

from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps import Family, Part
from align_jax.hub.keymaps.connectors import PERCEIVER_IDEFICS2
from align_jax.hub.keymaps.whole_config import (
    connector_part,
    part_of_it,
    section,
    tied_as,
)

_RENAME = (
    (r"^model\.text_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.", ""),
)


def options_of(raw: Mapping[str, Any]) -> dict[str, Any]:
  """The perceiver's options out of a whole config.json.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  text = raw.get("text_config") or {}
  fields = Fields({"model_type": "idefics2_perceiver"} | dict(
      raw.get("perceiver_config") or {}))
  fields.expect("hidden_act", "silu")
  fields.expect("rms_norm_eps", 1e-6)
  if fields.expect("qk_layer_norms_perceiver", False):
    return {}
  width = fields.take("hidden_size", 4096)
  if width != text.get("hidden_size", 4096):
    fields.fault(f"hidden_size {width} is not the language model's "
                 f"{text.get('hidden_size', 4096)}")
  if text.get("hidden_act", "silu") != "silu":  # of the MLP in front
    fields.refuse("text_config.hidden_act", text["hidden_act"], ("silu",))
  return fields.finish(dict, dict(
      form="idefics2",
      latents=fields.take("resampler_n_latents", 64),
      depth=fields.take("resampler_depth", 3),
      heads=fields.take("resampler_n_heads", 16),
      kv_heads=fields.take("num_key_value_heads", 4),
      head_width=fields.take("resampler_head_dim", 96),
      in_width=text.get("intermediate_size", 14_336)))


def compose(raw: Mapping[str, Any]) -> Family:
  """Idefics2 with the decoder of a config.json."""
  return part_of_it(
      "idefics2", "perceiver and language model are implemented", {
          "connector": connector_part("perceiver", PERCEIVER_IDEFICS2,
                                      options_of, "connector."),
          "decoder": Part(
              tied_as(raw, section(raw, "text_config", "mistral")),
              "text_config", "language_model.")},
      compose, _RENAME, models="Idefics2")


IDEFICS2 = compose({})
