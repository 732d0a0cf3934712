"""Ovis2, as transformers' Ovis2ForConditionalGeneration.

  model.vision_tower.transformer.*   our tower/      AIMv2
  model.vision_tower.head_*, model.visual_embeddings_table.*
                                     our connector/  the "ovis"
  model.language_model.*, lm_head.*  our decoder/    Qwen2
"""

from collections.abc import Mapping
from typing import Any

from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps import Family, Part
from align_jax.hub.keymaps.aimv2 import OVIS2_VISION
from align_jax.hub.keymaps.connectors import OVIS2 as CONNECTOR_RULES
from align_jax.hub.keymaps.whole_config import (
    WholeConfig,
    connector_part,
    read_parts,
    section,
    tied_as,
    whole_family,
)

# To prefix and key of a part.
_RENAME = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.", ""),
)


def options_of(raw: Mapping[str, Any]) -> dict[str, Any]:
  """The connector's options out of a whole config.json.

  Raises:
    ForeignConfigError: naming what is not understood.
  """
  fields = Fields({"model_type": "ovis2"} | {
      k: v for k, v in (raw.get("vision_config") or {}).items()
      if k in ("num_visual_indicator_tokens", "tokenize_function",
               "vocab_size", "hidden_stride")})
  fields.expect("tokenize_function", "softmax")
  fields.expect("num_visual_indicator_tokens", 5)
  return fields.finish(dict, dict(
      words=fields.take("vocab_size", 16_384),
      stride=fields.take("hidden_stride", 1), indicators=5))


def _parts(raw: Mapping[str, Any]) -> dict[str, Part]:
  return {"tower": Part(OVIS2_VISION, "vision_config",
                        "vision_tower.transformer."),
          "connector": connector_part("ovis", CONNECTOR_RULES, options_of),
          "decoder": Part(
              tied_as(raw, section(raw, "text_config", "qwen2"), True),
              "text_config", "language_model.")}


def read_config(raw: Mapping[str, Any]) -> WholeConfig:
  """config.json -> WholeConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields(dict(raw))
  found = read_parts(fields, raw, _parts(raw))
  decoder = found["decoder"]
  for name, field, default in (("vocab_size", "vocab_size", 151_643),
                               ("hidden_size", "width", 1536)):
    given = fields.take(name, default)
    own = getattr(decoder, field, given)
    if given != own:
      fields.fault(f"{name} {given} is not the language model's {own}")
  for name in ("image_token_id", "tie_word_embeddings"):
    fields.take(name, None)
  ids = fields.take("visual_indicator_token_ids", None)
  if ids is not None and len(ids) != 5:
    fields.refuse("visual_indicator_token_ids", ids, ("5 of them",))
  found["options"] = fields.section(options_of, dict(raw))
  return fields.finish(WholeConfig if all(found.values()) else dict,
                       found | dict(connector="ovis"))


def tiling_of(processor: Mapping[str, Any],
              side: int) -> tuple[str, dict[str, Any]]:
  """How Ovis2's image processor cuts images.

  Args:
    processor: its fields, `crop_to_patches` on.
    side: of the tower's images.

  Raises:
    ForeignConfigError: naming what of it is not done here.
  """
  fields = Fields({
      k: v for k, v in processor.items() if k in (
          "resample", "do_resize", "do_center_crop", "do_pad")},
      "image processor")
  fields.expect("resample", 3)  # bicubic
  fields.expect("do_resize", True)
  fields.expect("do_center_crop", False, None)
  fields.expect("do_pad", False, None)
  size = processor.get("size", {"height": 384, "width": 384})
  if (size.get("height"), size.get("width")) != (side, side):
    fields.fault(f"size {size} is not the tower's {side} pixels")
  return fields.finish(lambda **options: ("canvas", options), dict(
      max_tiles=processor.get("max_patches", 12),
      min_tiles=processor.get("min_patches", 1),
      covering=processor.get("use_covering_area_grid", True)))


def compose(raw: Mapping[str, Any]) -> Family:
  """Ovis2 with the decoder of a config.json."""
  return whole_family("ovis2", _parts(raw), read_config, compose, _RENAME,
                      models="Ovis2", tiling=tiling_of)


OVIS2 = compose({})
