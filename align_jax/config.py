"""The schema of a config. A config file gives an ml_collections ConfigDict."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class PartConfig:
  """A tower, a text tower or a decoder.

  Attributes:
    weights: a folder or GGUF file with pretrained weights, or
      `pkg:PACKAGE/PATH` for a file inside an installed package. "" means
      random initialisation at the sizes in `config`.
    kind: the registered kind, needed only without `weights` ("clip",
      "siglip", "llama", ...).
    config: sizes, needed only without `weights`; fields of the kind's config.
    tokenizer: where the decoder's tokenizer is, if not beside the weights.
    layer: feature layer of a tower, counted from the end: -1 the last, -2 the
      last but one (as LLaVA-1.5).
    class_token: whether the tower's features keep the class token.
  """
  weights: str = ""
  kind: str = ""
  config: dict[str, Any] = dataclasses.field(default_factory=dict)
  tokenizer: str = ""
  layer: int = -1
  class_token: bool = False


@dataclasses.dataclass(frozen=True)
class ConnectorConfig:
  kind: str = "mlp"
  options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """kind: "vlm" (tower, connector, decoder) or "clip" (tower, text)."""
  kind: str = "vlm"
  tower: PartConfig = PartConfig()
  connector: ConnectorConfig = ConnectorConfig()
  decoder: PartConfig = PartConfig()
  text: PartConfig = PartConfig()
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
class DataConfig:
  """Static shapes of a batch, and how samples become rows.

  Attributes:
    sources: by name.
    template: "chat" (the tokenizer's own), "plain" or "caption".
    rows: B, rows of a global batch.
    row_length: L, tokens in a row.
    images_per_row: N, image slots in a row.
    labels_per_row: M, the budget of supervised positions of a row.
    pack: several samples in one row.
    streams: virtual data streams; global row r comes from stream r % streams.
    on_bad_sample: "error" or "quarantine".
    max_pixels: larger images are refused.
    workers: threads that read and decode.
  """
  sources: dict[str, SourceConfig] = dataclasses.field(default_factory=dict)
  template: str = "chat"
  rows: int = 8
  row_length: int = 256
  images_per_row: int = 1
  labels_per_row: int = 64
  pack: bool = True
  streams: int = 1
  on_bad_sample: str = "error"
  max_pixels: int = 50_000_000
  workers: int = 2


@dataclasses.dataclass(frozen=True)
class StageConfig:
  """One stage of a run.

  Attributes:
    train: path pattern -> peak learning rate; what no pattern names is
      frozen. Patterns are globs over paths such as `connector/*`; a stack may
      be cut by layer, `tower/layers[-1]/*`.
    objectives: registered objective -> weight.
    data: source name -> mixture weight.
    accumulate: microbatches a step.
    schedule: "cosine", "linear" or "constant", after `warmup` steps (a share
      of `steps` if below 1).
  """
  name: str
  steps: int
  train: dict[str, float]
  objectives: dict[str, float] = dataclasses.field(
      default_factory=lambda: {"next_token": 1.0})
  data: dict[str, float] = dataclasses.field(default_factory=dict)
  accumulate: int = 1
  schedule: str = "cosine"
  warmup: float = 0.03
  optimizer: str = "adamw"
  weight_decay: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
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
class Config:
  name: str
  model: ModelConfig
  data: DataConfig
  stages: tuple[StageConfig, ...]
  mesh: MeshConfig = MeshConfig()
  eval: EvalConfig = EvalConfig()
  seed: int = 0
  imports: tuple[str, ...] = ()
  log_every: int = 10
  save_every: int = 100
  keep: int = 2
