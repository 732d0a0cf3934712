"""What the config.json of whole models have in common.

A whole model is a tower, a connector and a decoder, each of which may be taken
out of it alone. What a family's config.json says comes as a `WholeConfig`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from align_jax.errors import InputError
from align_jax.hub.foreign_config import Fields, ForeignConfigError
from align_jax.hub.keymaps import Family, Part, Rules, family_of, prefixed


@dataclasses.dataclass(frozen=True)
class WholeConfig:
  """A tower, a connector and a decoder.

  Attributes:
    tower: the tower's config.
    decoder: the decoder's config.
    connector: its registered kind.
    options: of the connector.
    layer: feature layer of the tower.
    class_token: whether the features keep the class token.
    template: how conversations are written, see data/render.py.
    files: options of the connector that name a file or a folder beside
      config.json.
    tiling: the strategy that cuts images, see data/tiling.py, and its
      options; "" for none.
  """
  tower: Any
  decoder: Any
  connector: str
  options: Mapping[str, Any]
  layer: int = -1
  class_token: bool = False
  template: str = "processor"
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)
  tiling: tuple[str, Mapping[str, Any]] = ("", {})


@dataclasses.dataclass(frozen=True)
class ConnectorOf:
  """A connector out of a whole model: its registered kind and its options."""
  connector: str
  options: Mapping[str, Any]


def connector_part(kind: str, rules: Rules,
                   read: Callable[[Mapping[str, Any]], Mapping[str, Any]],
                   prefix: str = "", **family: Any) -> Part:
  """A connector inside a whole model.

  Args:
    kind: its registered name.
    rules: of its parameters, without `prefix`.
    read: the whole config.json -> the connector's options.
    prefix: of its keys; "" is what no other part claims.
    family: other fields of `Family`.
  """
  def config(raw: Mapping[str, Any]) -> ConnectorOf:
    return ConnectorOf(kind, read(raw))

  def refuse(config: Any) -> Any:
    raise ValueError(f"a {kind!r} connector alone has no config.json")

  return Part(Family(kind=kind, rules=rules, read_config=config,
                     write_config=refuse, **family), "", prefix)


def section(raw: Mapping[str, Any], name: str, default: str) -> Family:
  """The family of one section; one that refuses where it is not known.

  Args:
    raw: config.json.
    name: of the section.
    default: its model_type where it does not say it.
  """
  try:
    return family_of(dict(raw.get(name) or {}), default)
  except KeyError as error:
    message = f"{name}: {error.args[0]}"

    def refuse(config: Any) -> Any:
      raise ForeignConfigError(message)

    return Family(kind="", rules={}, read_config=refuse, write_config=refuse)


def whole_family(name: str, parts: Mapping[str, Part], read: Callable,
                 compose: Callable, rename: tuple[tuple[str, str], ...],
                 write: Callable | None = None, **family: Any) -> Family:
  """A whole model of these parts.

  Args:
    name: its model_type, for errors.
    parts: "tower", "connector", "decoder" -> where they are.
    read: config.json -> `WholeConfig`.
    compose: config.json -> the family with its own parts.
    rename: brings the keys of files to prefix and part's key.
    write: `WholeConfig` -> config.json; None where that is not written.
    family: other fields of `Family`.
  """
  def refuse(config: Any) -> Any:
    raise InputError(f"a {name!r} config.json is read, and not written")

  rules: dict[str, tuple[str, str]] = {}
  ignored: list[str] = []
  for part, inside in parts.items():
    rules |= prefixed(inside.family.rules, f"{part}/", inside.prefix)
    ignored += [f"^{re.escape(inside.prefix)}{p[1:]}" if p.startswith("^")
                else p for p in inside.family.ignored]
  return Family(kind="vlm", rules=rules, read_config=read,
                write_config=write or refuse, rename=rename,
                ignored=tuple(ignored), parts=parts, compose=compose, **family)


def part_of_it(name: str, why: str, parts: Mapping[str, Part],
               compose: Callable, rename: tuple[tuple[str, str], ...] = (),
               models: str = "") -> Family:
  """A model of which parts alone are read.

  Args:
    name: its model_type.
    why: what of it is not implemented.
    parts: as in `whole_family`.
    compose: likewise.
    rename: likewise.
    models: such as, for people.
  """
  def refuse(config: Any) -> Any:
    raise ForeignConfigError(
        f"of a {name!r} model, {why}; parts of it can be named alone: "
        f"{', '.join(p for p in sorted(parts) if parts[p].family.rules)} "
        "(load_tower, load_decoder, model.connector.weights)")

  return Family(kind=name, rules={}, read_config=refuse, write_config=refuse,
                rename=rename, parts=parts, compose=compose, models=models)


def tied_as(raw: Mapping[str, Any], decoder: Family,
            default: bool | None = None) -> Family:
  """A decoder whose head is tied where the whole config.json says so.

  Args:
    raw: config.json.
    decoder: of its language model.
    default: where config.json does not say; None is what the language model's
      own section says.
  """
  tied = raw.get("tie_word_embeddings", default)
  if tied is None:
    return decoder
  return dataclasses.replace(
      decoder, read_config=lambda given: decoder.read_config(
          dict(given) | {"tie_word_embeddings": tied}))


def read_parts(fields: Fields, raw: Mapping[str, Any],
               parts: Mapping[str, Part]) -> dict[str, Any]:
  """The configs of tower and decoder; None once their faults are noted."""
  found = {}
  for name in ("tower", "decoder"):
    part = parts[name]
    fields.take(part.config, None)
    found[name] = fields.section(part.family.read_config,
                                 dict(raw.get(part.config) or {}))
  return found
