"""The schema of a config, and how a config is found and overridden.

A config file has `get_config(arg="")`, which gives an ml_collections
ConfigDict (or a plain dict) of the fields below; `align_jax.validate` turns
it into a `Config`.
"""

import ast
import dataclasses
import importlib.util
import inspect
import json
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from align_jax.errors import ConfigError, InputError
from align_jax.registry import nearest


@dataclasses.dataclass(frozen=True)
class PartConfig:
  """A tower, a text tower or a decoder.

  Attributes:
    weights: a folder or GGUF file with pretrained weights, `org/name` or
      `org/name@revision` of the Hugging Face Hub, or `pkg:PACKAGE/PATH` for a
      file inside an installed package. "" means random initialisation at the
      sizes in `config`.
    published: a model of `hub/published.py`. Its sizes serve to plan without
      weights; training needs `weights` too, of just these sizes.
    kind: the registered kind, needed only without the two above ("clip",
      "siglip", "llama", ...).
    config: sizes, needed only with `kind`; fields of the kind's config.
    tokenizer: where the decoder's tokenizer is, if not beside the weights.
    layer: feature layer of a tower, counted from the end: -1 the last, -2 the
      last but one (as LLaVA-1.5).
    class_token: whether the tower's features keep the class token.
  """
  weights: str = ""
  published: str = ""
  kind: str = ""
  config: dict[str, Any] = dataclasses.field(default_factory=dict)
  tokenizer: str = ""
  layer: int = -1
  class_token: bool = False


@dataclasses.dataclass(frozen=True)
class ConnectorConfig:
  """kind: registered name; options go to its constructor.

  weights: what `align-jax convert export --to connector` wrote, or a whole
  model's folder or hub id, to start from; "" is a start of its own.
  """
  kind: str = "mlp"
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  weights: str = ""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Adapters beside the decoder's weights (decoders/lora.py).

  Attributes:
    rank: 0 is none.
    alpha: their product is scaled by alpha / rank.
    targets: of q, k, v, o, gate, up and down.
  """
  rank: int = 0
  alpha: float = 16.0
  targets: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A model, and in what precision it computes.

  Attributes:
    kind: "vlm" (tower, connector, decoder) or "clip" (tower, text).
    lora: adapters of a vlm's decoder; `decoder/layers/*_lora_*` names them in
      a stage's `train`.
    prompt_tokens: learned embeddings before each sample of a vlm, so that a
      frozen decoder can be told what is asked of it; `prompt_xd` in `train`.
    newline: a learned embedding that ends each row of patches where images
      are cut by the tiling "anyres"; `newline_xd` in `train`.
    scalars: numbers that objectives read and a stage may train, by name, with
      what they start at: {"sea_log_scale": 0.0}.
  """
  kind: str = "vlm"
  tower: PartConfig = PartConfig()
  connector: ConnectorConfig = ConnectorConfig()
  decoder: PartConfig = PartConfig()
  text: PartConfig = PartConfig()
  scalars: dict[str, float] = dataclasses.field(default_factory=dict)
  lora: LoraConfig = LoraConfig()
  prompt_tokens: int = 0
  newline: bool = False
  dtype: str = "bfloat16"
  frozen_dtype: str = "bfloat16"
  remat: str = "full"


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; one may be -1, "what is left"."""
  replica: int = 1
  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  context: int = 1


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """kind: registered name of a source; options go to its constructor."""
  kind: str
  options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TilingConfig:
  """How an image becomes several tiles (data/tiling.py); kind "" leaves it
  one. Options go to the strategy's constructor."""
  kind: str = ""
  options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Static shapes of a batch, and how samples become rows.

  Attributes:
    sources: by name.
    template: "chat" (the tokenizer's own), "processor" (the same with bos
      where the tokenizer adds one), "plain", "blip" (images, bos, the words)
      or "caption".
    tiling: of images; each tile takes one of a row's image slots.
    images_first: all images of a sample stand before the text of its first
      user turn, in their order; else where the text has them (interleaved).
    prompt_length: with "blip", a prompt keeps its last so many words in
      training, in tokens and with bos; 0 keeps all. No other template drops
      anything.
    text_length: how many tokens of text a sample has at most, beside its
      visual tokens; 0: as many as a row has room for.
    rows: B, rows of a global batch.
    row_length: L, tokens in a row.
    images_per_row: N, image slots in a row.
    labels_per_row: M, the budget of supervised positions of a row.
    pack: several samples in one row.
    streams: virtual data streams; global row r comes from stream r % streams.
    on_bad_sample: "error" or "quarantine".
    max_pixels: larger images are refused.
    scaled_decode: JPEG files are decoded at a half, a quarter or an eighth of
      their size where that is no smaller than the tower's images: faster, and
      no longer the very pixels of the tower's own processor. Not of tiles.
    workers: threads that read and decode.
    features: a folder that `align-jax data features` wrote: a frozen tower's
      features of all images, which are read in their place; "" runs the
      tower.
  """
  sources: dict[str, SourceConfig] = dataclasses.field(default_factory=dict)
  template: str = "chat"
  tiling: TilingConfig = TilingConfig()
  images_first: bool = False
  prompt_length: int = 0
  text_length: int = 0
  rows: int = 8
  row_length: int = 256
  images_per_row: int = 1
  labels_per_row: int = 64
  pack: bool = True
  streams: int = 1
  on_bad_sample: str = "error"
  max_pixels: int = 50_000_000
  scaled_decode: bool = False
  workers: int = 2
  features: str = ""


# What one stage may set otherwise than the run: the shapes of a batch, and how
# a sample becomes tokens.
BATCH_FIELDS = ("template", "images_first", "prompt_length", "text_length",
                "rows", "row_length", "images_per_row", "labels_per_row",
                "pack")


@dataclasses.dataclass(frozen=True)
class StageConfig:
  """One stage of a run.

  Attributes:
    train: path pattern -> peak learning rate; what no pattern names is
      frozen. Patterns are globs over paths such as `connector/*`; a stack may
      be cut by layer, `tower/layers[-1]/*`.
    objectives: registered objective -> weight; their options are the run's
      `objective_options`.
    data: source name -> mixture weight.
    batch: fields of the run's `data` that this stage sets otherwise; see
      BATCH_FIELDS.
    accumulate: microbatches a step.
    schedule: "cosine", "linear" or "constant", after `warmup` steps (a share
      of `steps` if below 1).
    measure: log how near a vlm's visual tokens are to words, at each step:
      see train/measures.py. A row of each shard is read twice for it (MIR,
      which a connector that looks again between layers does not have).
    moment_dtype: of Adam's first moment. The second stays f32: b2 moves it by
      a thousandth a step, which bf16 would round away.
  """
  name: str
  steps: int
  train: dict[str, float]
  objectives: dict[str, float] = dataclasses.field(
      default_factory=lambda: {"next_token": 1.0})
  data: dict[str, float] = dataclasses.field(default_factory=dict)
  batch: dict[str, Any] = dataclasses.field(default_factory=dict)
  accumulate: int = 1
  schedule: str = "cosine"
  warmup: float = 0.03
  optimizer: str = "adamw"
  weight_decay: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  measure: bool = False
  moment_dtype: str = "float32"
  clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """task: registered name; options go to the task's constructor."""
  task: str = ""
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  limit: int = 0
  batch: int = 32
  max_new_tokens: int = 8


@dataclasses.dataclass(frozen=True)
class PlanConfig:
  """What `align-jax plan` takes the run to be for; training ignores it.

  Attributes:
    topology: such as "v5e:16x16".
    misses: goal ("T2") -> why this recipe does not meet it. A goal that is
      missed without a reason here fails `make plan-all`.
  """
  topology: str = ""
  misses: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Config:
  name: str
  model: ModelConfig
  data: DataConfig
  stages: tuple[StageConfig, ...]
  mesh: MeshConfig = MeshConfig()
  eval: EvalConfig = EvalConfig()
  plan: PlanConfig = PlanConfig()
  objective_options: dict[str, dict[str, Any]] = dataclasses.field(
      default_factory=dict)
  seed: int = 0
  imports: tuple[str, ...] = ()
  log_every: int = 10
  save_every: int = 100
  keep: int = 2

  def of(self, stage: StageConfig) -> "Config":
    """The config as that stage sees it: its own `data`, all else alike."""
    return dataclasses.replace(
        self, data=dataclasses.replace(self.data, **stage.batch))


def config_folders() -> list[Path]:
  """Where a config's name is looked up, in order, without repeats."""
  here = Path(__file__).resolve().parent
  folders = (Path.cwd() / "configs", here.parent / "configs", here / "configs")
  return list(dict.fromkeys(f for f in folders if f.is_dir()))


# Studies lie among the configs they compare; this tells them apart.
_GET_STUDY = re.compile(r"^(def )?get_study\b", re.MULTILINE)


def config_names(kind: str = "config") -> list[str]:
  """Names of all configs that can be found, such as "mini/clip".

  Args:
    kind: "config", or "study" for the files with get_study().
  """
  return sorted({
      path.relative_to(folder).with_suffix("").as_posix()
      for folder in config_folders() for path in folder.rglob("*.py")
      if not path.name.startswith("_") and (kind == "study") == bool(
          _GET_STUDY.search(path.read_text(encoding="utf-8")))})


def find_config(name: str, kind: str = "config") -> Path:
  """The file of a config, or of a study, given by path or by name.

  Raises:
    InputError: there is none; the message lists the names there are.
  """
  if Path(name).is_file():
    return Path(name)
  for folder in config_folders():
    path = folder / f"{name.removesuffix('.py')}.py"
    if path.is_file():
      return path
  names = config_names(kind)
  raise InputError(
      f"no {kind} {name!r}: neither a file nor a name{nearest(name, names)} "
      f"(known: {', '.join(names) or 'none'})")


def load_config(spec: str, overrides: Iterable[str] = ()) -> ConfigDict:
  """Reads a config and applies overrides; `validate` comes after.

  Args:
    spec: "FILE[:arg]" or "NAME[:arg]"; `arg` goes to the file's get_config.
      A run's own `config.json` is a FILE too.
    overrides: "a.b=value" each. An item of a list is named by its place,
      `stages[0].steps=10` (`stages.0.steps` is the same).

  Raises:
    InputError: no such config, or the file has no get_config.
    ConfigError: an override that cannot be read.
  """
  name, _, argument = spec.partition(":")
  path = find_config(name)
  if path.suffix == ".json":
    config = json.loads(path.read_text(encoding="utf-8"))
  else:
    config = _get_config(path)(*([argument] if argument else []))
  config = plain(config)
  faults = []
  for override in overrides:
    try:
      _override(config, override)
    except ValueError as error:
      faults.append(f"--config.{override}: {error}")
  if faults:
    raise ConfigError(spec, faults)
  return ConfigDict(config)


def plain(value: Any) -> Any:
  """The same config in plain dicts and lists."""
  if isinstance(value, ConfigDict):
    return {k: plain(v) for k, v in value.items(preserve_field_references=0)}
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return plain(dataclasses.asdict(value))
  if isinstance(value, Mapping):
    return {k: plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  return value


def differences(saved: Any, given: Any, path: str = "") -> list[str]:
  """Fields in which two plain configs differ, one line each."""
  if isinstance(saved, dict) and isinstance(given, dict):
    lines = []
    for key in sorted(saved.keys() | given.keys()):
      lines += differences(saved.get(key, "(absent)"),
                           given.get(key, "(absent)"),
                           f"{path}.{key}" if path else str(key))
    return lines
  if (isinstance(saved, list) and isinstance(given, list)
      and len(saved) == len(given)):
    return [line for i, (a, b) in enumerate(zip(saved, given))
            for line in differences(a, b, f"{path}[{i}]")]
  return [] if saved == given else [
      f"{path}: saved {saved!r}, given {given!r}"]


def _get_config(path: Path) -> Any:
  module_spec = importlib.util.spec_from_file_location(
      f"align_jax_config_{path.stem}", path)
  if module_spec is None or module_spec.loader is None:
    raise InputError(f"{path} is not a Python file")
  module = importlib.util.module_from_spec(module_spec)
  module_spec.loader.exec_module(module)
  get_config = getattr(module, "get_config", None)
  if get_config is None:
    raise InputError(f"{path} has no get_config()")
  takes = inspect.signature(get_config).parameters

  def call(*arguments: str) -> Any:
    if len(arguments) > len(takes):
      raise InputError(f"{path}: get_config takes no argument, "
                       f"got {arguments[0]!r}")
    return get_config(*arguments)

  return call


def _override(config: dict[str, Any], override: str) -> None:
  """Sets one field in place; unknown fields are left to `validate`."""
  where, equals, text = override.partition("=")
  if not equals:
    raise ValueError("expected FIELD=VALUE")
  node: Any = config
  kind: Any = Config
  steps = _steps(where)
  for i, step in enumerate(steps):
    last = i == len(steps) - 1
    if isinstance(node, list):
      if not step.lstrip("-").isdigit() or not (
          -len(node) <= int(step) < len(node)):
        raise ValueError(f"{step!r} is no place in a list of {len(node)}")
      key: Any = int(step)
    elif isinstance(node, dict):
      key = step
    else:
      raise ValueError(f"{'.'.join(steps[:i])} is no group of fields")
    kind = _inner(kind, step)
    if last:
      node[key] = parse_value(text, kind)
    elif isinstance(node, dict):
      node = node.setdefault(key, {})
    else:
      node = node[key]


def _steps(where: str) -> list[str]:
  """Splits "stages[0].train.tower/layers[-1]/*" into its four steps.

  A dict's keys may hold brackets of their own, so only a bracket that ends
  a step is an index.
  """
  steps: list[str] = []
  for part in where.split("."):
    match = re.fullmatch(r"([a-z_]+)((?:\[-?\d+\])*)", part)
    if match is None:
      steps.append(part)
    else:
      steps += [match[1]] + re.findall(r"-?\d+", match[2])
  return steps


def _inner(kind: Any, step: str) -> Any:
  """The schema's type of a field, an item or an entry; Any if unknown."""
  if dataclasses.is_dataclass(kind):
    return typing.get_type_hints(kind).get(step, Any)
  if typing.get_origin(kind) in (dict, tuple):
    return typing.get_args(kind)[0 if typing.get_origin(kind) is tuple else 1]
  return Any


def parse_value(text: str, kind: Any) -> Any:
  """What a text of the command line says, for a field of a type."""
  if kind is str:
    return text
  if kind is bool and text.lower() in ("true", "false"):
    return text.lower() == "true"
  try:
    return plain(ast.literal_eval(text))
  except (ValueError, SyntaxError):
    return text
