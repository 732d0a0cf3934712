"""From plain values to the dataclasses of `config.py`, field by field."""

import dataclasses
import re
import typing
from collections.abc import Mapping
from typing import Any

from align_jax.config import Config, plain
from align_jax.registry import nearest

CHOICES: dict[str, tuple[str, ...]] = {
    "model.kind": ("vlm", "clip"),
    "model.dtype": ("float32", "bfloat16"),
    "model.frozen_dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "full", "attention", "dots", "offload"),
    "data.template": ("chat", "processor", "plain", "blip", "caption"),
    "data.on_bad_sample": ("error", "quarantine"),
    "stages[].schedule": ("cosine", "linear", "constant"),
    "stages[].optimizer": ("adamw",),
    "stages[].moment_dtype": ("float32", "bfloat16"),
}

# The smallest value of a number; below it, the config is at fault.
LEAST: dict[str, float] = {
    "data.prompt_length": 0, "data.text_length": 0, "data.rows": 1,
    "data.row_length": 2, "data.images_per_row": 0,
    "data.labels_per_row": 1, "data.streams": 1,
    "data.max_pixels": 1, "data.workers": 0, "model.lora.rank": 0,
    "model.lora.alpha": 0, "model.prompt_tokens": 0, "stages[].steps": 1,
    "stages[].accumulate": 1, "stages[].warmup": 0,
    "stages[].weight_decay": 0, "stages[].b1": 0, "stages[].b2": 0,
    "stages[].clip_norm": 0, "eval.limit": 0,
    "eval.batch": 1, "eval.max_new_tokens": 1, "seed": 0, "log_every": 1,
    "save_every": 1, "keep": 1,
}


def typed(kind: type, values: Any, path: str, faults: list[str]) -> Any:
  """A dataclass of the schema from plain values.

  A faulty field is listed and then stands at its default (or at a harmless
  value), so that what is right can still be checked together.
  """
  if not isinstance(values, dict):
    faults.append(f"{path}: expected fields, got {shown(values)}")
    values = {}
  fields = {f.name: f for f in dataclasses.fields(kind)}
  hints = typing.get_type_hints(kind)
  dot = f"{path}." if path else ""
  for key in values:
    if key not in fields:
      faults.append(f"{dot}{key}: unknown field{nearest(key, fields)}")
  made = {}
  for name, field in fields.items():
    if name in values:
      made[name] = _value(hints[name], values[name], dot + name, faults)
    required = (field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING)
    if required and name not in values:
      faults.append(f"{dot}{name}: missing")
    if made.get(name) is None:
      made.pop(name, None)
      if required:
        made[name] = _stand_in(hints[name], dot + name)
  return kind(**made)


def _stand_in(kind: Any, path: str) -> Any:
  if dataclasses.is_dataclass(kind):
    return typed(kind, {}, path, [])
  origin = typing.get_origin(kind)
  if origin in (dict, tuple):
    return origin()
  return re.sub(r"\W", "_", path) if kind is str else 1


def _value(kind: Any, value: Any, path: str, faults: list[str]) -> Any:
  """A field's value in its type; None where it is faulty."""
  origin = typing.get_origin(kind)
  if kind is Any:
    return value
  if dataclasses.is_dataclass(kind):
    return typed(kind, value, path, faults)
  if origin is dict:
    if not isinstance(value, dict):
      faults.append(f"{path}: expected entries, got {shown(value)}")
      return None
    inner = typing.get_args(kind)[1]
    made = {k: _value(inner, v, f"{path}.{k}", faults)
            for k, v in value.items()}
    return {k: v for k, v in made.items() if v is not None or inner is Any}
  if origin is tuple:
    if not isinstance(value, list):
      faults.append(f"{path}: expected a list, got {shown(value)}")
      return None
    inner = typing.get_args(kind)[0]
    made_all = [_value(inner, v, f"{path}[{i}]", faults)
                for i, v in enumerate(value)]
    return None if None in made_all else tuple(made_all)
  if kind is float and type(value) is int:
    return float(value)
  if type(value) is not kind:
    faults.append(f"{path}: expected {kind.__name__}, got {shown(value)}")
    return None
  rule = re.sub(r"\[\d+\]", "[]", path)
  allowed = CHOICES.get(rule)
  if allowed is not None and value not in allowed:
    faults.append(f"{path}: {value!r} is none of {', '.join(allowed)}"
                  f"{nearest(value, allowed)}")
    return None
  least = LEAST.get(rule)
  if least is not None and not value >= least:
    faults.append(f"{path}: {value} is below {least:g}")
    return type(value)(least)
  return value


def with_defaults(saved: Mapping[str, Any]) -> dict[str, Any]:
  """A run's saved config with the fields that the schema got since.

  What the schema no longer has is kept: it decided what was learned.
  """

  def over(default: Any, own: Any) -> Any:
    if isinstance(default, dict) and isinstance(own, dict):
      return default | {k: over(default.get(k), v) for k, v in own.items()}
    if isinstance(default, list) and isinstance(own, list):
      # Lists of other lengths differ anyway.
      return [over(*pair) for pair in zip(default, own, strict=True)] if (
          len(default) == len(own)) else own
    return own

  return over(plain(typed(Config, plain(saved), "", [])), plain(saved))


def shown(value: Any) -> str:
  text = repr(value)
  return f"{text if len(text) < 60 else text[:57] + '...'} " \
         f"({type(value).__name__})"
