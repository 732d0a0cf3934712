"""From a ConfigDict to a `Config`; all faults are listed in one error."""

import dataclasses
import fnmatch
import importlib
import inspect
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from align_jax.config import (
  BATCH_FIELDS,
  Config,
  DataConfig,
  ModelConfig,
  SourceConfig,
  StageConfig,
  TilingConfig,
  plain,
)
from align_jax.errors import ConfigError, InputError
from align_jax.registry import Registry, nearest
from align_jax.typed import shown, typed

MODULES: dict[str, tuple[str, ...]] = {
    "vlm": ("tower", "connector", "decoder"),
    "clip": ("tower", "text", "logit_scale", "image_projection_ce",
             "text_projection_ce"),
}

# Parts that each kind of model is built of; a connector has no PartConfig.
PARTS: dict[str, tuple[str, ...]] = {
    "vlm": ("tower", "decoder"), "clip": ("tower", "text")}

# Sources with an option `source` of their own.
_MADE_OF_A_SOURCE = ("labelled", "views")

# Fields that build.py gives to a connector; the rest are its options.
_GIVEN = ("parent", "name", "dim_out", "vocab_size", "dtype", "layout")


def validate(config: Any, source: str = "the config") -> Config:
  """Checks a config (ConfigDict, dict or Config) and gives the dataclasses.

  The modules in `imports` are imported first, so that what they register is
  known.

  Raises:
    ConfigError: every unknown field, wrong type, unknown name and impossible
      combination, with the nearest valid name.
  """
  values = plain(config)
  if not isinstance(values, dict):
    raise ConfigError(source, [f"expected fields, got {shown(values)}"])
  faults: list[str] = []
  imports = values.get("imports")
  for name in imports if isinstance(imports, list) else ():
    try:
      importlib.import_module(str(name))
    except ImportError as error:
      faults.append(f"imports: cannot import {name!r} ({error})")
  built = typed(Config, values, "", faults)
  faulty = [f.split(": ")[0] for f in faults]
  for fault in [*_names(built), *_combinations(built)]:
    where = fault.split(": ")[0]
    if not any(where == f or where.startswith((f + ".", f + "["))
               for f in faulty):
      faults.append(fault)
  if faults:
    raise ConfigError(source, faults)
  return built


def check_rows(config: Config, row_shards: int) -> None:
  """Refuses rows that the mesh cannot share out evenly.

  Args:
    config: the run's.
    row_shards: devices along the mesh axes that carry rows.

  Raises:
    ConfigError: names each stage whose microbatch does not divide.
  """
  faults = []
  for where, stage in _stages(config):
    rows = config.of(stage).data.rows
    if rows // stage.accumulate % row_shards:
      faults.append(
          f"{where}: a microbatch of {rows // stage.accumulate} rows "
          f"(data.rows={rows} / accumulate={stage.accumulate}) cannot be "
          f"shared by the {row_shards} devices of mesh axes replica x data x "
          "fsdp")
  if faults:
    raise ConfigError(config.name, faults)


def _names(config: Config) -> Iterator[str]:
  """Faults in registered names and in the options given with them."""
  from align_jax.connectors import CONNECTORS
  from align_jax.objectives import OBJECTIVES

  yield from _parts(config.model)
  yield from _adapters(config.model)
  if config.model.kind == "vlm":
    connector = config.model.connector
    yield from _registered(CONNECTORS, connector.kind, connector.options,
                           "model.connector", "kind", _GIVEN)
  if config.data.tiling.kind:
    yield from _tiling(config.data.tiling)
  for name, source in config.data.sources.items():
    yield from _source(plain(source), f"data.sources.{name}")
  for where, stage in _stages(config):
    for name in stage.objectives:
      yield from _registered(
          OBJECTIVES, name, config.objective_options.get(name, {}),
          f"{where}.objectives", given=("config",),
          at=f"objective_options.{name}")
  used = {name for _, stage in _stages(config) for name in stage.objectives}
  for name in config.objective_options:
    if name not in used:
      yield (f"objective_options.{name}: no stage has this objective"
             f"{nearest(name, used)}")
  if config.eval.task:
    from align_jax.evals.tasks import TASKS
    yield from _registered(TASKS, config.eval.task, config.eval.options,
                           "eval", "task")


def _tiling(tiling: TilingConfig) -> Iterator[str]:
  """Faults in how images are cut."""
  from align_jax.data import TILINGS

  faults = list(_registered(TILINGS, tiling.kind, tiling.options,
                            "data.tiling", "kind"))
  yield from faults
  if not faults:
    try:
      TILINGS.get(tiling.kind)(**tiling.options)
    except InputError as error:
      yield f"data.tiling.options: {error}"


def check_source(source: Any, where: str) -> None:
  """Refuses a data source that is given outside a config.

  Raises:
    ConfigError: all its faults.
  """
  if faults := list(_source(source, where)):
    raise ConfigError(where, faults)


def _source(source: Any, where: str) -> Iterator[str]:
  """Faults in a source, and in the source that it may be made of."""
  from align_jax.data import SOURCES

  faults: list[str] = []
  made = typed(SourceConfig, source, where, faults)
  yield from faults
  if not faults:
    yield from _registered(SOURCES, made.kind, made.options, where, "kind")
    if made.kind in _MADE_OF_A_SOURCE and "source" in made.options:
      yield from _source(made.options["source"], f"{where}.options.source")


def _parts(model: ModelConfig) -> Iterator[str]:
  """Faults in tower, decoder and text tower: weights, or kind and sizes."""
  from align_jax.decoders import DECODERS
  from align_jax.hub.locate import locate
  from align_jax.hub.published import PUBLISHED
  from align_jax.towers import TOWERS
  from align_jax.towers.text import TextConfig

  named = (*PARTS[model.kind], *(["connector"] if model.kind == "vlm" else []))
  for name in named:
    for field in ("weights", "tokenizer"):
      try:
        if place := getattr(getattr(model, name), field, ""):
          locate(place, texts_only=True)
      except InputError as error:
        yield f"model.{name}.{field}: {error}"
  for name in PARTS[model.kind]:
    part, where = getattr(model, name), f"model.{name}"
    if name == "text":
      if part.config and not model.tower.weights:
        yield from _sizes(TextConfig, part.config, where, ("embed_width",))
    elif part.published:
      if part.published not in PUBLISHED:
        yield (f"{where}.published: {part.published!r} is none of "
               f"{', '.join(PUBLISHED)}{nearest(part.published, PUBLISHED)}")
    elif part.kind and not part.weights:
      registry = {"tower": TOWERS, "decoder": DECODERS}[name]
      unknown = [*_registered(registry, part.kind, None, where, "kind")]
      yield from unknown or _sizes(registry.get(part.kind), part.config, where)


def _adapters(model: ModelConfig) -> Iterator[str]:
  """Faults in what is trained beside the parts, and in a given connector."""
  from align_jax.decoders.lora import TARGETS
  from align_jax.hub.locate import locate

  targets = model.lora.targets
  for target in targets:
    if target not in TARGETS:
      yield (f"model.lora.targets: {target!r} is none of "
             f"{', '.join(TARGETS)}{nearest(target, TARGETS)}")
  if len(set(targets)) < len(targets):
    yield "model.lora.targets: one of them is named twice"
  if model.lora.rank and not targets:
    yield "model.lora.targets: there is none"
  if model.kind != "vlm":
    for field, given in (("lora.rank", model.lora.rank),
                         ("prompt_tokens", model.prompt_tokens)):
      if given:
        yield f"model.{field}: a {model.kind} model has no decoder"
  if model.connector.weights:
    try:
      locate(model.connector.weights)
    except InputError as error:
      yield f"model.connector.weights: {error}"


def _sizes(make: Any, given: Mapping[str, Any], where: str,
           also: Iterable[str] = ()) -> Iterator[str]:
  """Faults in the sizes that make a part's own config.

  Args:
    make: a dataclass, or a function that says which one it makes; of anything
      else only its own error is known.
    given: sizes by name.
    where: of the part.
    also: sizes that are needed but not by `make`.
  """
  yield from (f"{where}.config.{n}: missing" for n in also if n not in given)
  try:
    make(**{n: v for n, v in given.items() if n not in also})
    return
  except ValueError as error:  # the names are right, the values are not
    yield f"{where}.config: {error}"
    return
  except TypeError as error:
    other = f"{where}.config: {error}"
  if inspect.isfunction(make):
    make = typing.get_type_hints(make).get("return")
  fields = dataclasses.fields(make) if dataclasses.is_dataclass(make) else ()
  known = [*(f.name for f in fields), *also]
  faults = [f"{where}.config.{name}: unknown field{nearest(name, known)} "
            f"(known: {', '.join(known)})" for name in given
            if fields and name not in known]
  faults += [f"{where}.config.{f.name}: missing" for f in fields
             if f.default is f.default_factory is dataclasses.MISSING
             and f.name not in given]
  yield from faults or [other]


def _registered(registry: Registry, name: str,
                options: Mapping[str, Any] | None, where: str,
                field: str = "", given: Iterable[str] = (),
                at: str = "") -> Iterator[str]:
  """Faults in a name and, unless they are None, in its options.

  These stand in the config at `at`, or else at "{where}.options".
  """
  at = at or f"{where}.options"
  if name not in registry:
    yield (f"{where}{'.' + field if field else ''}: unknown {registry.kind} "
           f"{name!r}{nearest(name, registry.names())} "
           f"(known: {', '.join(registry.names())})")
  elif options is not None:
    parameters = inspect.signature(registry.get(name)).parameters
    named = {n: p for n, p in parameters.items()
             if n not in given and p.kind is not p.VAR_KEYWORD}
    allowed = list(named)
    yield from (f"{at}.{n}: missing" for n, p in named.items()
                if p.default is p.empty and n not in options)
    if len(named) < len(parameters.keys() - set(given)):
      return  # it takes any option
    for option in options:
      if option not in allowed:
        yield (f"{at}.{option}: unknown option of {registry.kind} "
               f"{name!r}{nearest(option, allowed)} "
               f"(known: {', '.join(allowed) or 'none'})")


def _combinations(config: Config) -> Iterator[str]:
  """Faults that only several fields together make."""
  data, model = config.data, config.model
  for part in ("tower", "decoder") if model.kind == "vlm" else ("tower",):
    chosen = getattr(model, part)
    if not (chosen.weights or chosen.published or chosen.kind):
      yield (f"model.{part}: give weights, a published model, or a kind and "
             "its config")
  if model.kind == "clip" and not model.tower.weights and not model.text.config:
    yield "model.text: give its config, or weights of the whole CLIP as tower"
  if model.kind == "clip" and data.tiling.kind:
    yield "data.tiling: a clip model reads each image as one"
  if not data.sources:
    yield "data.sources: there is none"
  yield from _batches(model.kind, data)
  if data.features and (model.kind == "clip" or any(
      fnmatch.fnmatchcase("tower", pattern.split("/")[0])
      for stage in config.stages for pattern in stage.train)):
    yield ("data.features: a stage trains the tower, whose features are "
           "others then")
  if data.scaled_decode and data.tiling.kind:
    yield "data.scaled_decode: tiles want every pixel of an image"
  if data.features and data.tiling.kind:
    yield "data.features: features are kept of whole images, not of tiles"
  fixed = [axis for axis in ("replica", "data", "fsdp", "tensor", "context")
           if getattr(config.mesh, axis) == -1]
  if len(fixed) > 1:
    yield f"mesh: only one axis may be -1, here {' and '.join(fixed)} are"
  for field in dataclasses.fields(config.mesh):
    size = getattr(config.mesh, field.name)
    if size < 1 and size != -1:
      yield f"mesh.{field.name}: {size} is neither -1 nor at least 1"
  if not config.stages:
    yield "stages: there is none"
  yield from _untrained(config)
  seen: dict[str, str] = {}
  for where, stage in _stages(config):
    if stage.name in seen:
      yield f"{where}.name: {stage.name!r} is taken by {seen[stage.name]}"
    seen.setdefault(stage.name, where)
    yield from _stage(config, where, stage)


def _batches(kind: str, data: DataConfig) -> Iterator[str]:
  """Faults in what a batch is made to hold."""
  if kind == "clip":
    # One image and one caption a row: row i's image goes with row i's text.
    for field, want in (("template", "caption"), ("pack", False),
                        ("images_per_row", 1)):
      if getattr(data, field) != want:
        yield (f"data.{field}: a clip model needs {want!r}, here it is "
               f"{getattr(data, field)!r}")
  elif data.template == "caption":
    yield ("data.template: 'caption' has no labels for a vlm model to learn; "
           "use 'chat' or 'plain'")
  if data.prompt_length and data.template != "blip":
    yield (f"data.prompt_length: {data.prompt_length} tokens, but template "
           f"{data.template!r} keeps prompts whole; 'blip' cuts them")
  if data.labels_per_row > data.row_length:
    yield (f"data.labels_per_row: {data.labels_per_row} labels cannot lie in "
           f"a row of {data.row_length} tokens")
  if data.rows % data.streams:
    yield (f"data.streams: {data.streams} streams cannot fill {data.rows} "
           "rows evenly")


def _own_data(config: Config, where: str, stage: StageConfig,
              faults: list[str]) -> DataConfig:
  """What a stage makes of the run's `data`; its faults are listed."""
  known = {n: v for n, v in stage.batch.items() if n in BATCH_FIELDS}
  faults += [f"{where}.batch.{n}: a stage cannot set this"
             f"{nearest(n, BATCH_FIELDS)} (it can set "
             f"{', '.join(BATCH_FIELDS)})"
             for n in stage.batch if n not in known]
  found: list[str] = []
  data = typed(DataConfig, plain(config.data) | known, "data", found)
  if known and not found:
    found += _batches(config.model.kind, data)
  faults += [f"{where}.batch{f.removeprefix('data')}".replace(
      ".batch.streams", ".batch.rows") for f in found]  # streams are the run's
  return data


def _untrained(config: Config) -> Iterator[str]:
  """What is there only to be trained, and no stage trains."""
  patterns = [p for stage in config.stages for p in stage.train]
  if config.model.prompt_tokens and not any(
      fnmatch.fnmatchcase("prompt_xd", p) for p in patterns):
    yield "model.prompt_tokens: no stage trains prompt_xd"
  if config.model.newline and not any(
      fnmatch.fnmatchcase("newline_xd", p) for p in patterns):
    yield "model.newline: no stage trains newline_xd"
  if config.model.lora.rank and not any(
      "_lora_" in p or fnmatch.fnmatchcase("decoder/layers/q_lora_dr", p)
      for p in patterns):
    yield "model.lora: no stage trains decoder/layers/*_lora_*"


def _stage(config: Config, where: str, stage: StageConfig) -> Iterator[str]:
  from align_jax.objectives import OBJECTIVES

  if not re.fullmatch(r"[A-Za-z0-9_-]+", stage.name):
    yield (f"{where}.name: {stage.name!r} is not made of letters, digits, "
           "- and _")
  if not stage.train:
    yield f"{where}.train: names no parameter"
  modules = (*MODULES[config.model.kind], *config.model.scalars,
             *(("prompt_xd",) if config.model.prompt_tokens else ()),
             *(("newline_xd",) if config.model.newline else ()))
  for pattern, rate in stage.train.items():
    first = pattern.split("/")[0]
    if not any(fnmatch.fnmatchcase(m, first) for m in modules):
      yield (f"{where}.train.{pattern}: a {config.model.kind} model has no "
             f"{first!r}{nearest(first, modules)} "
             f"(it has {', '.join(modules)})")
    if not rate > 0:
      yield f"{where}.train.{pattern}: learning rate {rate:g} is not above 0"
  for name in stage.data:
    if name not in config.data.sources:
      yield (f"{where}.data.{name}: no such source in data.sources"
             f"{nearest(name, config.data.sources)}")
  for name, share in stage.data.items():
    if not share > 0:
      yield f"{where}.data.{name}: mixture weight {share:g} is not above 0"
  if not stage.objectives:
    yield f"{where}.objectives: there is none"
  faults: list[str] = []
  rows = _own_data(config, where, stage, faults).rows
  yield from faults
  if rows % stage.accumulate:
    yield (f"{where}.accumulate: {rows} rows do not split into "
           f"{stage.accumulate} equal microbatches")
  for name in stage.objectives:
    if name not in OBJECTIVES:
      continue
    objective = OBJECTIVES.get(name)
    wants = getattr(objective, "model", config.model.kind)
    if wants != config.model.kind:
      yield (f"{where}.objectives: {name!r} is for a {wants} model, and "
             f"model.kind is {config.model.kind!r}")
    if config.data.tiling.kind and hasattr(objective, "extras"):
      yield (f"{where}.objectives: {name!r} reads labels of whole images, "
             f"and data.tiling cuts them")
    if stage.accumulate > 1 and getattr(objective, "coupled", False):
      yield (f"{where}.accumulate: objective {name!r} couples the samples of "
             "a batch, so a batch cannot be split; set accumulate to 1")
  if stage.measure and config.model.kind != "vlm":
    yield f"{where}.measure: a {config.model.kind} model has no visual tokens"
  if stage.warmup >= 1 and stage.warmup > stage.steps:
    yield (f"{where}.warmup: {stage.warmup:g} steps of warm-up in a stage of "
           f"{stage.steps}")
  for field in ("b1", "b2"):
    if getattr(stage, field) >= 1:
      yield f"{where}.{field}: {getattr(stage, field):g} is not below 1"


def _stages(config: Config) -> Iterator[tuple[str, StageConfig]]:
  for i, stage in enumerate(config.stages):
    yield f"stages[{i}]", stage
