"""Foreign checkpoints: what their weights and their configs are called.

One small file a family of models, all of it data but for reading config.json.
A table maps our path to a foreign key and to how the array is turned:

  "layers/q_dhk": ("model.layers.{n}.self_attn.q_proj.weight",
                   "(h k) d -> d h k")

Left of the arrow stand the foreign axes, right of it ours; `(h k)` is one axis
made of two, a digit is an axis of that size, "" is a scalar; `@n` takes a piece
of a fused tensor (see `hub/transform.py`). `{n}` numbers the layers: ours are
stacked along a leading axis that the transform leaves out.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from align_jax.registry import Registry

Rules = Mapping[str, tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Family:
  """All that is known of one kind of foreign checkpoint.

  Attributes:
    kind: what it is: the registered tower, or the family of decoders, all of
      which are configs of the one registered decoder.
    rules: our path -> (foreign key, transform).
    read_config: config.json as a dict -> our config; refuses what it does not
      know (`hub/foreign_config.py`).
    write_config: our config -> config.json as a dict.
    rename: (regular expression, replacement) pairs that bring the keys found
      in a file, which differ between versions, to those in `rules`.
    ignored: regular expressions of foreign keys that no rule claims and that
      may stand in a file all the same.
    parts: "tower", "text", "connector", "decoder" -> where a part is in this
      checkpoint.
    resamples: whether a tower reads images of the size that the processor
      beside it gives, resampling the position embeddings to it.
    models: such as, for people.
    written_as: the model_type that it is written as, where it is found inside
      another's model alone.
    compose: config.json -> the family of a whole model, whose parts depend on
      it; None where one family serves every config.
    tiling: (fields of an image processor that cuts images into tiles, side of
      the tower's) -> the strategy of data/tiling.py that does as it does, and
      its options; None where there is none.
  """
  kind: str
  rules: Rules
  read_config: Callable[[dict[str, Any]], Any]
  write_config: Callable[[Any], dict[str, Any]]
  rename: tuple[tuple[str, str], ...] = ()
  ignored: tuple[str, ...] = ()
  parts: Mapping[str, "Part"] = dataclasses.field(default_factory=dict)
  resamples: bool = False
  models: str = ""
  written_as: str = ""
  compose: Callable[[dict[str, Any]], "Family"] | None = None
  tiling: Callable[[Mapping[str, Any], int],
                   tuple[str, dict[str, Any]]] | None = None


@dataclasses.dataclass(frozen=True)
class Part:
  """A model inside another's checkpoint.

  Attributes:
    family: of the part.
    config: key of its config inside config.json; "" is the whole.
    prefix: of its keys, after the outer family's `rename`; taken off.
  """
  family: Family
  config: str
  prefix: str


# By `model_type` of config.json.
FAMILIES = Registry("model_type", {
    "llama": "align_jax.hub.keymaps.llama:LLAMA",
    "mistral": "align_jax.hub.keymaps.mistral:MISTRAL",
    "qwen2": "align_jax.hub.keymaps.qwen2:QWEN2",
    "qwen3": "align_jax.hub.keymaps.qwen3:QWEN3",
    "gemma": "align_jax.hub.keymaps.gemma:GEMMA",
    "gemma2": "align_jax.hub.keymaps.gemma2:GEMMA2",
    "gemma3": "align_jax.hub.keymaps.gemma3:GEMMA3",
    "gemma3_text": "align_jax.hub.keymaps.gemma3:GEMMA3_TEXT",
    "phi3": "align_jax.hub.keymaps.phi3:PHI3",
    "llava": "align_jax.hub.keymaps.llava:LLAVA",
    "llava_next": "align_jax.hub.keymaps.llava:LLAVA_NEXT",
    "clip": "align_jax.hub.keymaps.clip:CLIP",
    "clip_vision_model": "align_jax.hub.keymaps.clip:CLIP_VISION",
    "siglip": "align_jax.hub.keymaps.siglip:SIGLIP",
    "siglip_vision_model": "align_jax.hub.keymaps.siglip:SIGLIP_VISION",
    "aimv2_vision_model": "align_jax.hub.keymaps.aimv2:AIMV2_VISION",
    "dinov2": "align_jax.hub.keymaps.dinov2:DINOV2",
    "dinov2_with_registers":
        "align_jax.hub.keymaps.dinov2:DINOV2_REGISTERS",
    "instructblip": "align_jax.hub.keymaps.blip:INSTRUCTBLIP",
    "blip-2": "align_jax.hub.keymaps.blip:BLIP2",
    "ovis2": "align_jax.hub.keymaps.ovis2:OVIS2",
    "idefics2": "align_jax.hub.keymaps.idefics2:IDEFICS2",
    "internvl": "align_jax.hub.keymaps.internvl:INTERNVL",
    "instructblip_vision_model":
        "align_jax.hub.keymaps.eva:INSTRUCTBLIP_VISION",
    "blip_2_vision_model": "align_jax.hub.keymaps.eva:BLIP2_VISION",
})


def family_of(raw: dict[str, Any], default: str = "") -> Family:
  """The family of a config.json, composed if it is a whole model's.

  Args:
    raw: config.json, or a section of one.
    default: the model_type of a section that does not say it.

  Raises:
    KeyError: an unknown model_type; the message lists those that are known.
  """
  family = FAMILIES.get(raw.get("model_type") or default)
  return family.compose(raw) if family.compose else family


def prefixed(rules: Rules, ours: str, theirs: str) -> Rules:
  """The rules of a part, moved below these prefixes."""
  return {ours + path: (theirs + key, transform)
          for path, (key, transform) in rules.items()}
