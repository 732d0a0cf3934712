"""InternVL's pixel-shuffle projector and its language model, out of
transformers' InternVLForConditionalGeneration.

Its tower, InternViT, is not implemented.
"""

from collections.abc import Mapping
from typing import Any

from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps import Family, Part
from align_jax.hub.keymaps.connectors import PIXEL_SHUFFLE_INTERNVL
from align_jax.hub.keymaps.whole_config import (
    connector_part,
    part_of_it,
    section,
    tied_as,
)

_RENAME = (
    (r"^model\.(vision_tower\.|multi_modal_projector\.)", r"\1"),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
)


def options_of(raw: Mapping[str, Any]) -> dict[str, Any]:
  """The projector's options out of a whole config.json.

  Raises:
    ForeignConfigError: naming what is not understood.
  """
  fields = Fields({"model_type": "internvl"} | {
      k: v for k, v in raw.items()
      if k in ("projector_hidden_act", "downsample_ratio")})
  fields.expect("projector_hidden_act", "gelu")
  ratio = fields.take("downsample_ratio", 0.5)
  factor = round(1 / ratio) if ratio else 0
  if not factor or abs(factor * ratio - 1) > 1e-6:
    fields.refuse("downsample_ratio", ratio, ("1 / a whole number",))
  return fields.finish(dict, dict(form="internvl", factor=factor))


def compose(raw: Mapping[str, Any]) -> Family:
  """InternVL with the decoder of a config.json."""
  return part_of_it(
      "internvl", "projector and language model are implemented", {
          "connector": connector_part("pixel_shuffle", PIXEL_SHUFFLE_INTERNVL,
                                      options_of, "multi_modal_projector."),
          "decoder": Part(
              tied_as(raw, section(raw, "text_config", "qwen2")),
              "text_config", "language_model.")},
      compose, _RENAME, models="InternVL 2, 3")


INTERNVL = compose({})
