"""LLaVA-1.5 and LLaVA-NeXT, of any tower and decoder that we know.

transformers' LlavaForConditionalGeneration and LlavaNext...:

  vision_tower.*            our tower/
  multi_modal_projector.*   our connector/   (the "mlp" connector)
  image_newline             our connector/newline_xd   (NeXT)
  language_model.*          our decoder/

Written as transformers 5.23 writes it; also read are the names of 4.x
(`vision_tower.vision_model.`) and those inside a running model (`model.`).
"""

import dataclasses
import re
import types
from collections.abc import Mapping
from typing import Any

from align_jax.errors import InputError
from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps import Family, Part, family_of, prefixed

# transformers' names of activations: the mlp connector's.
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh",
               "linear": "none"}
_GRID = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
# Of a tower whose last norm no feature of LLaVA's goes through.
LAST_NORM = r"^post_layernorm\."
# What the configs' sections are where config.json leaves them out.
_VISION = {
    "model_type": "clip_vision_model", "intermediate_size": 4096,
    "hidden_size": 1024, "patch_size": 14, "image_size": 336,
    "num_hidden_layers": 24, "num_attention_heads": 16}
_TEXT = {"model_type": "llama"}


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
  """A tower, LLaVA-1.5's MLP and a decoder.

  Attributes:
    tower: the tower's config.
    decoder: the decoder's config.
    layer: feature layer of the tower.
    class_token: whether the features keep the class token.
    image_token: the id that stands for an image in the text.
    activation: of the MLP, as the connector calls it.
    grid: pinpoints (height, width) of LLaVA-NeXT's anyres; () is LLaVA-1.5.
  """
  tower: Any
  decoder: Any
  layer: int = -2
  class_token: bool = False
  image_token: int = 32_000
  activation: str = "gelu"
  grid: tuple[tuple[int, int], ...] = ()

  # As of any whole model, see `whole_config.WholeConfig`.
  template = "processor"
  files = types.MappingProxyType({})

  @property
  def connector(self) -> str:
    return "mlp"

  @property
  def options(self) -> dict[str, Any]:
    """Of the connector."""
    given = {"activation": self.activation, "newline": bool(self.grid)}
    return {k: v for k, v in given.items() if v not in ("gelu", False)}

  @property
  def tiling(self) -> tuple[str, dict[str, Any]]:
    """The strategy that cuts images, see data/tiling.py, and its options."""
    return ("anyres", {"grid": self.grid}) if self.grid else ("", {})


CONNECTOR_RULES = {
    "in_cf": ("multi_modal_projector.linear_1.weight", "f c -> c f"),
    "in_bias_f": ("multi_modal_projector.linear_1.bias", "f -> f"),
    "out_fd": ("multi_modal_projector.linear_2.weight", "d f -> f d"),
    "out_bias_d": ("multi_modal_projector.linear_2.bias", "d -> d"),
}
_NEWLINE = {"newline_xd": ("image_newline", "d -> 1 d")}

# The names inside a running model, which some versions wrote.
_RENAME = (
    (r"^model\.(vision_tower\.|multi_modal_projector\.|image_newline)", r"\1"),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
)


def llava_family(tower: Family, decoder: Family, anyres: bool = False
                 ) -> Family:
  """LLaVA of these parts; `anyres` is LLaVA-NeXT."""
  inside = tower
  tower = dataclasses.replace(
      inside, write_config=lambda c: inside.write_config(_normed(c)))
  projector = CONNECTOR_RULES | (_NEWLINE if anyres else {})

  def read(raw: dict[str, Any]) -> LlavaConfig:
    return read_config(raw, tower, decoder, anyres)

  def write(config: LlavaConfig) -> dict[str, Any]:
    return write_config(config, tower, decoder)

  connector = Family(
      kind="mlp", rules=projector, read_config=read, write_config=write)
  return Family(
      kind="vlm",
      rules={**prefixed(tower.rules, "tower/", "vision_tower."),
             **prefixed(decoder.rules, "decoder/", "language_model."),
             **prefixed(projector, "connector/", "")},
      read_config=read, write_config=write, rename=_RENAME,
      ignored=(*_inside(tower.ignored, "vision_tower."),
               *_inside(decoder.ignored, "language_model.")),
      parts={"tower": Part(tower, "vision_config", "vision_tower."),
             "connector": Part(connector, "", ""),
             "decoder": Part(decoder, "text_config", "language_model.")},
      models="LLaVA-NeXT (1.6)" if anyres else "LLaVA-1.5",
      compose=lambda raw: compose(raw, anyres))


def compose(raw: dict[str, Any], anyres: bool = False) -> Family:
  """The family of a config.json; what is unknown is refused on reading it."""
  tower = _section(raw, "vision_config", _VISION)
  if raw.get("vision_feature_layer") == -1:
    read = tower.read_config
    tower = dataclasses.replace(
        tower, read_config=lambda section: _unnormed(read(section)),
        ignored=(*tower.ignored, LAST_NORM))
  return llava_family(tower, _section(raw, "text_config", _TEXT), anyres)


def takes_normed(tower: Any, layer: int) -> bool:
  """Whether features are taken after a tower's last norm, as LLaVA never
  does: its layer -1 is what the last layer gives."""
  return layer == -1 and getattr(tower, "post_norm", "") in (
      "features", "both")


def _unnormed(tower: Any) -> Any:
  """A tower whose last norm is in the file, and not on its features."""
  if getattr(tower, "post_norm", "") != "features":
    return tower
  return dataclasses.replace(tower, post_norm="none")


def _normed(tower: Any) -> Any:
  """The way back: as the tower's own family writes it."""
  lone = (getattr(tower, "post_norm", "") == "none"
          and not tower.class_token)
  return dataclasses.replace(tower, post_norm="features") if lone else tower


def _section(raw: dict[str, Any], name: str,
             default: dict[str, Any]) -> Family:
  """The family of one section; one that refuses where it is not known."""
  try:
    return family_of(raw.get(name) or {}, default["model_type"])
  except KeyError as error:
    message = f"{name}: {error.args[0]}"

    def refuse(config: Any) -> Any:
      raise InputError(message)

    return Family(kind="", rules={}, read_config=refuse, write_config=refuse)


def _inside(patterns: tuple[str, ...], prefix: str) -> tuple[str, ...]:
  """A part's patterns, for its keys inside the whole."""
  return tuple(f"^{re.escape(prefix)}{p[1:]}" if p.startswith("^") else p
               for p in patterns)


def read_config(hf: Mapping[str, Any], tower: Family, decoder: Family,
                anyres: bool) -> LlavaConfig:
  """config.json -> LlavaConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields(dict(hf))
  activation = fields.take("projector_hidden_act", "gelu")
  if activation not in ACTIVATIONS:
    fields.refuse("projector_hidden_act", activation, tuple(ACTIVATIONS))
  fields.expect("multimodal_projector_bias", True)
  fields.take("image_seq_length", None)  # follows from the tower
  fields.take("ignore_index", None)      # of the training loss
  tied = fields.take("tie_word_embeddings", False)
  strategy = fields.expect(
      "vision_feature_select_strategy", "default", "full")
  layer = fields.take("vision_feature_layer", -2)
  if not isinstance(layer, int) or layer >= 0:
    fields.refuse("vision_feature_layer", layer, ("one negative number",))
  token = fields.take("image_token_index", None)
  token = fields.take("image_token_id", None) if token is None else token
  grid: tuple[tuple[int, int], ...] = ()
  if anyres:
    fields.expect("use_image_newline_parameter", True)
    grid = tuple((int(h), int(w)) for h, w in
                 fields.take("image_grid_pinpoints", None) or _GRID)
  parts: dict[str, Any] = {}
  for ours, theirs, family, default in (
      ("tower", "vision_config", tower, _VISION),
      ("decoder", "text_config", decoder, _TEXT)):
    section = dict(fields.take(theirs, None) or default)
    section.setdefault("model_type", default["model_type"])
    if ours == "decoder" and tied:
      section["tie_word_embeddings"] = True
    try:
      parts[ours] = family.read_config(section)
    except ValueError as error:
      fields.fault(str(error).replace("\n", "\n  "))
  has_class = getattr(parts.get("tower"), "class_token", True)
  if strategy == "default" and not has_class:
    fields.fault("vision_feature_select_strategy 'default' drops the first "
                 "patch of a tower that has no class token (known: 'full')")
  side = getattr(parts.get("tower"), "image_size", 0)
  if side and (wrong := [g for g in grid if g[0] % side or g[1] % side]):
    fields.fault(f"image_grid_pinpoints {wrong} are no multiples of the "
                 f"tower's {side} pixels")
  return fields.finish(
      LlavaConfig if len(parts) == 2 else dict, parts | dict(
          layer=layer, class_token=strategy == "full" and has_class,
          image_token=32_000 if token is None else token,
          activation=ACTIVATIONS.get(activation, "gelu"), grid=grid))


def write_config(config: LlavaConfig, tower: Family,
                 decoder: Family) -> dict[str, Any]:
  """LlavaConfig -> config.json."""
  parts = {"vision_config": tower.write_config(config.tower),
           "text_config": decoder.write_config(config.decoder)}
  for part in parts.values():
    part.pop("architectures", None)
  whole = config.class_token or not config.tower.class_token
  kind = "LlavaNext" if config.grid else "Llava"
  foreign = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
  return {
      "architectures": [f"{kind}ForConditionalGeneration"],
      "model_type": "llava_next" if config.grid else "llava",
      "image_token_index": config.image_token,
      "image_seq_length": config.tower.patches + config.class_token,
      "multimodal_projector_bias": True,
      "projector_hidden_act": foreign[config.activation],
      "tie_word_embeddings": config.decoder.tied_head,
      "vision_feature_layer": config.layer,
      "vision_feature_select_strategy": "full" if whole else "default",
  } | ({"image_grid_pinpoints": [list(g) for g in config.grid]}
       if config.grid else {}) | parts


def _default(anyres: bool) -> Family:
  from align_jax.hub.keymaps.clip import CLIP_VISION
  from align_jax.hub.keymaps.llama import LLAMA
  return llava_family(CLIP_VISION, LLAMA, anyres)


LLAVA = _default(anyres=False)
LLAVA_NEXT = _default(anyres=True)
