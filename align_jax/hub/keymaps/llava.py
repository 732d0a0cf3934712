"""LLaVA, as transformers' LlavaForConditionalGeneration.

  vision_tower.*            our tower/
  multi_modal_projector.*   our connector/   (the "mlp" connector)
  language_model.*          our decoder/
"""

import dataclasses
from typing import Any

from align_jax.decoders.transformer import DecoderConfig
from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps import Family, Part, prefixed
from align_jax.hub.keymaps.clip import CLIP_VISION
from align_jax.hub.keymaps.llama import LLAMA
from align_jax.towers.vit import ViTConfig


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
  """A CLIP tower, LLaVA-1.5's MLP and a Llama.

  Attributes:
    tower: the tower's config.
    decoder: the decoder's config.
    layer: feature layer of the tower.
    class_token: whether the features keep the class token.
    image_token: the id that stands for an image in the text.
  """
  tower: ViTConfig
  decoder: DecoderConfig
  layer: int = -2
  class_token: bool = False
  image_token: int = 32_000


RULES = {
    **prefixed(CLIP_VISION.rules, "tower/", "vision_tower."),
    **prefixed(LLAMA.rules, "decoder/", "language_model."),
    "connector/in_cf": ("multi_modal_projector.linear_1.weight",
                        "f c -> c f"),
    "connector/in_bias_f": ("multi_modal_projector.linear_1.bias", "f -> f"),
    "connector/out_fd": ("multi_modal_projector.linear_2.weight",
                         "d f -> f d"),
    "connector/out_bias_d": ("multi_modal_projector.linear_2.bias", "d -> d"),
}


def read_config(hf: dict[str, Any]) -> LlavaConfig:
  """config.json -> LlavaConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields(hf)
  fields.expect("projector_hidden_act", "gelu")
  fields.expect("multimodal_projector_bias", True)
  fields.take("image_seq_length", None)  # follows from the tower
  fields.take("ignore_index", None)      # of the training loss
  fields.take("tie_word_embeddings", None)  # text_config says it
  strategy = fields.expect(
      "vision_feature_select_strategy", "default", "full")
  layer = fields.take("vision_feature_layer", -2)
  if not isinstance(layer, int) or layer >= 0:
    fields.refuse("vision_feature_layer", layer, ("one negative number",))
  token = fields.take("image_token_index", None)
  token = fields.take("image_token_id", None) if token is None else token
  parts = {}
  for ours, theirs, known, family in (
      ("tower", "vision_config", "clip_vision_model", CLIP_VISION),
      ("decoder", "text_config", "llama", LLAMA)):
    section = fields.take(theirs, None) or {}
    kind = section.get("model_type", known)
    if kind != known:
      fields.refuse(f"{theirs}.model_type", kind, (known,))
      continue
    try:
      parts[ours] = family.read_config(section)
    except ValueError as error:
      fields.fault(str(error).replace("\n", "\n  "))
  return fields.finish(
      LlavaConfig if len(parts) == 2 else dict, parts | dict(
          layer=layer, class_token=strategy == "full",
          image_token=32_000 if token is None else token))


def write_config(config: LlavaConfig) -> dict[str, Any]:
  """LlavaConfig -> config.json."""
  parts = {"vision_config": CLIP_VISION.write_config(config.tower),
           "text_config": LLAMA.write_config(config.decoder)}
  for part in parts.values():
    part.pop("architectures", None)
  return {
      "architectures": ["LlavaForConditionalGeneration"],
      "model_type": "llava",
      "image_token_index": config.image_token,
      "image_seq_length": config.tower.patches + config.class_token,
      "multimodal_projector_bias": True,
      "projector_hidden_act": "gelu",
      "tie_word_embeddings": config.decoder.tied_head,
      "vision_feature_layer": config.layer,
      "vision_feature_select_strategy":
          "full" if config.class_token else "default",
  } | parts


LLAVA = Family(
    kind="llava",
    rules=RULES,
    read_config=read_config,
    write_config=write_config,
    # The names inside a running model, which some versions wrote.
    rename=(
        (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
    ),
    ignored=(r"rotary_emb\.inv_freq$", r"embeddings\.position_ids$",
             r"^language_model\.lm_head\.weight$"),
    parts={"tower": Part(CLIP_VISION, "vision_config", "vision_tower."),
           "decoder": Part(LLAMA, "text_config", "language_model.")},
)
