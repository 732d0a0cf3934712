"""What the config.json of decoders have in common: sizes, RoPE, windows.

A family reads its own fields beside these, and writes them back; `faithful`
makes sure that what is written says all that the config holds.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from align_jax.decoders.transformer import DecoderConfig
from align_jax.errors import InputError
from align_jax.hub.foreign_config import Fields
from align_jax.ops.rope import (
    LinearScaling,
    Llama3Scaling,
    LongRope,
    Scaling,
    YarnScaling,
)

# Our field: transformers' name. A family gives the default of each, which is
# that of its configuration class.
SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "mlp_width": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "tied_head": "tie_word_embeddings",
    "max_positions": "max_position_embeddings",
}

_SLIDING, _FULL = "sliding_attention", "full_attention"


def read_sizes(fields: Fields, defaults: Mapping[str, Any]) -> dict[str, Any]:
  """Our sizes; `defaults` are by our names, 0 where another size gives it."""
  sizes = {ours: fields.take(theirs, defaults.get(ours, 0))
           for ours, theirs in SIZES.items()}
  # null is what the class makes of it: as many as heads, D / H.
  return sizes | {name: sizes[name] or 0 for name in ("kv_heads", "head_width")}


def write_sizes(config: DecoderConfig) -> dict[str, Any]:
  return {theirs: getattr(config, ours) for ours, theirs in SIZES.items()}


def read_rope(fields: Fields, max_positions: int) -> dict[str, Any]:
  """rope_theta and rope_scaling, out of either spelling of config.json.

  `rope_parameters` holds both since transformers 5; `rope_theta` and
  `rope_scaling` stood beside each other before.

  Args:
    fields: of the config.
    max_positions: the original length, where a scaling does not say it.
  """
  rope = dict(fields.take("rope_scaling", None) or {})
  rope |= fields.take("rope_parameters", None) or {}
  return rope_of(fields, "rope_parameters", rope, max_positions,
                 fields.take("rope_theta", None) or 10_000.0)


def rope_of(fields: Fields, name: str, rope: Mapping[str, Any],
            max_positions: int, theta: float,
            aliases: Mapping[str, str] | None = None) -> dict[str, Any]:
  """As `read_rope`, of one dict of rope parameters called `name`.

  Args:
    fields: where faults go.
    name: of the dict.
    rope: the dict.
    max_positions: as in `read_rope`.
    theta: the base, where the dict does not say it.
    aliases: other names that the family knows a rope_type by.
  """
  rope = {k: v for k, v in rope.items() if v is not None}
  theta = float(rope.pop("rope_theta", theta))
  kind = rope.pop("rope_type", rope.get("type", "default"))
  rope.pop("type", None)
  kind = (aliases or {}).get(kind, kind)
  scaling = None
  if kind not in _SCALINGS:
    fields.refuse("rope_type", kind, tuple(_SCALINGS))
    return dict(rope_theta=theta, rope_scaling=None)
  needed, make = _SCALINGS[kind]
  if missing := [n for n in needed if n not in rope]:
    fields.fault(f"rope_type {kind!r} without {', '.join(missing)}")
    for n in needed:
      rope.pop(n, None)
  else:
    scaling = make(rope, max_positions)
  fields.refuse_rest(name, rope)
  return dict(rope_theta=theta, rope_scaling=scaling)


_ORIGINAL = "original_max_position_embeddings"


def _llama3(rope: dict[str, Any], _: int) -> Scaling:
  return Llama3Scaling(
      *(float(rope.pop(n)) for n in ("factor", "low_freq_factor",
                                     "high_freq_factor")),
      int(rope.pop(_ORIGINAL)))


def _yarn(rope: dict[str, Any], max_positions: int) -> Scaling:
  original = int(rope.pop(_ORIGINAL, max_positions))
  factor = float(rope.pop("factor", max_positions / original))
  gain = lambda scale: 0.1 * scale * math.log(max(factor, 1.0)) + 1.0
  some, all_ = rope.pop("mscale", 0), rope.pop("mscale_all_dim", 0)
  default = gain(some) / gain(all_) if some and all_ else gain(1.0)
  return YarnScaling(
      factor, original, float(rope.pop("attention_factor", default)),
      float(rope.pop("beta_fast", 0) or 32), float(rope.pop("beta_slow", 0)
                                                   or 1),
      rope.pop("truncate", True))


def _longrope(rope: dict[str, Any], max_positions: int) -> Scaling:
  original = int(rope.pop(_ORIGINAL, max_positions))
  factor = float(rope.pop("factor", max_positions / original))
  default = (1.0 if factor <= 1 else
             math.sqrt(1 + math.log(factor) / math.log(original)))
  short, long = (tuple(map(float, rope.pop(name)))
                 for name in ("short_factor", "long_factor"))
  return LongRope(short, long, original,
                  float(rope.pop("attention_factor", default)))


# rope_type: (fields it cannot do without, how it is read; it pops what it
# reads). "dynamic" changes all keys with every new token and is left out.
_SCALINGS: dict[str, tuple[tuple[str, ...], Callable]] = {
    "default": ((), lambda rope, _: None),
    "linear": (("factor",), lambda rope, _: LinearScaling(
        float(rope.pop("factor")))),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
               _llama3),
    "yarn": ((), _yarn),
    "longrope": (("short_factor", "long_factor"), _longrope),
}


def write_rope(theta: float, scaling: Scaling | None) -> dict[str, Any]:
  """The dict of rope parameters that `rope_of` reads."""
  rope: dict[str, Any] = {"rope_theta": theta}
  match scaling:
    case None:
      return rope | {"rope_type": "default"}
    case LinearScaling():
      return rope | {"rope_type": "linear", "factor": scaling.factor}
    case Llama3Scaling():
      rope |= {"rope_type": "llama3", "factor": scaling.factor,
               "low_freq_factor": scaling.low_freq_factor,
               "high_freq_factor": scaling.high_freq_factor}
    case YarnScaling():
      rope |= {"rope_type": "yarn", "factor": scaling.factor,
               "attention_factor": scaling.gain,
               "beta_fast": scaling.beta_fast,
               "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
    case LongRope():
      rope |= {"rope_type": "longrope", "attention_factor": scaling.gain,
               "short_factor": list(scaling.short),
               "long_factor": list(scaling.long)}
  return rope | {_ORIGINAL: scaling.original_max_positions}


def read_windows(fields: Fields, layers: int, window: int | None,
                 sliding: Callable[[int], bool]) -> tuple[int, ...]:
  """The window of each layer, 0 for none, out of `layer_types`.

  Args:
    fields: of the config.
    layers: number of layers.
    window: of the layers that slide, None for none.
    sliding: of the number of a layer, where `layer_types` is not there.
  """
  kinds = fields.take("layer_types", None) or [
      _SLIDING if sliding(i) else _FULL for i in range(layers)]
  for kind in sorted(set(kinds) - {_SLIDING, _FULL}):
    fields.refuse("layer_types", kind, (_FULL, _SLIDING))
  if len(kinds) != layers:
    fields.fault(f"{len(kinds)} layer_types for {layers} layers")
  if _SLIDING in kinds and not window:
    fields.fault("layer_types has 'sliding_attention', but sliding_window "
                 f"is {window!r}")
  if _SLIDING not in kinds:
    return ()
  return tuple((window or 0) * (kind == _SLIDING) for kind in kinds)


def write_windows(config: DecoderConfig) -> dict[str, Any]:
  """`layer_types` and `sliding_window`."""
  windows = config.windows or (0,) * config.layers
  return {"layer_types": [_SLIDING if w else _FULL for w in windows],
          "sliding_window": max(windows) or None}


def faithful(config: DecoderConfig, written: dict[str, Any],
             read: Callable[[dict[str, Any]], DecoderConfig]) -> dict[str, Any]:
  """`written`, if it says all that `config` holds.

  Raises:
    InputError: naming what this family's config.json has no words for.
  """
  again = read(written)
  lost = [f"{field.name} = {mine!r} (it can only be {theirs!r})"
          for field in dataclasses.fields(config)
          for mine, theirs in [(getattr(config, field.name),
                                getattr(again, field.name))]
          if mine != theirs]
  if lost:
    raise InputError(f"a {written['model_type']!r} config.json cannot say:\n  "
                     + "\n  ".join(lost))
  return written
