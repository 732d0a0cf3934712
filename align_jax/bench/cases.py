"""What whole-step benchmarks run: configs, made-up batches, a ready step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from align_jax.build import Parts, init_params
from align_jax.config import (
  Config,
  ConnectorConfig,
  DataConfig,
  MeshConfig,
  ModelConfig,
  PartConfig,
  SourceConfig,
  StageConfig,
)
from align_jax.data.batch import batch_spec, place
from align_jax.errors import InputError
from align_jax.parallel.mesh import make_mesh
from align_jax.train.ahead import abstract_stage
from align_jax.train.job import declared
from align_jax.train.optimizer import make_optimizer
from align_jax.train.select import flatten, split, trainables
from align_jax.train.state import TrainState, new_state
from align_jax.train.step import Step


def tiny_llava(vocab: int, dtype: str = "float32") -> Config:
  """The model of goals C9 and C10: ViT 4 x 192, decoder 4 x 256.

  4 rows of one image of 64 patches and 64 words, half of them labelled; every
  parameter is trained.
  """
  tower = PartConfig(kind="clip", config=dict(
      image_size=64, patch_size=8, width=192, layers=4, heads=3,
      mlp_width=768), layer=-2)
  decoder = PartConfig(kind="llama", config=dict(
      vocab_size=vocab, width=256, layers=4, heads=4, mlp_width=688,
      tied_head=False))
  return Config(
      f"tiny_llava_{vocab}",
      ModelConfig(tower=tower, connector=ConnectorConfig("mlp"),
                  decoder=decoder, dtype=dtype, frozen_dtype=dtype,
                  remat="none"),
      DataConfig(sources={"none": SourceConfig("llava")}, rows=4,
                 row_length=128, images_per_row=1, labels_per_row=32),
      (StageConfig("all", 1000, {"*": 1e-4}, schedule="constant"),),
      mesh=MeshConfig(data=1))


def large_llava(width: int, connector: str = "mlp") -> Config:
  """The models of goals H1, H2 and H5, for one GPU: ViT-400M with Llama-3.2.

  Args:
    width: 2048 (1B) or 3072 (3B) of the decoder.
    connector: its kind.
  """
  layers, heads, mlp, rows = {
      2048: (16, 32, 8192, 8), 3072: (28, 24, 8192, 4)}[width]
  tower = PartConfig(kind="siglip", config=dict(
      image_size=384, patch_size=14, width=1152, layers=27, heads=16,
      mlp_width=4304), layer=-2)
  decoder = PartConfig(kind="llama", config=dict(
      vocab_size=128_256, width=width, layers=layers, heads=heads, kv_heads=8,
      mlp_width=mlp, rope_theta=500_000.0, tied_head=True))
  return Config(
      f"large_llava_{width}_{connector}",
      ModelConfig(tower=tower, connector=ConnectorConfig(connector),
                  decoder=decoder, remat="attention"),
      DataConfig(sources={"none": SourceConfig("llava")}, rows=rows,
                 row_length=2048, images_per_row=2, labels_per_row=512),
      (StageConfig("all", 1000, {"*": 1e-5}, schedule="constant",
                   moment_dtype="bfloat16"),), mesh=MeshConfig(data=1))


@dataclasses.dataclass
class Ready:
  """A stage's step with a state and a batch on the devices.

  Calling it runs one step; the state moves on.
  """
  config: Config
  stage: StageConfig
  parts: Parts
  step: Step
  state: TrainState
  batch: dict[str, Any]
  place: Callable[[dict[str, Any]], dict[str, Any]]

  def __call__(self, batch: dict[str, Any] | None = None) -> jax.Array:
    self.state, metrics = self.step(
        self.state, self.batch if batch is None else batch)
    return metrics["loss"]

  @property
  def shapes(self) -> str:
    """B, L, N, M, T, V, D in words; the mesh, and how many devices it takes."""
    d, model = self.config.data, self.parts.model
    text = (f"B={d.rows} L={d.row_length} N={d.images_per_row} "
            f"M={d.labels_per_row}")
    if self.config.model.kind == "vlm":
      c, t = model.decoder.config, model.tower.config
      text += (f" T={self.parts.tokens_per_image}; tower {t.layers} x "
               f"{t.width}; decoder {c.layers} x {c.width}, V={c.vocab_size}")
    axes = "x".join(f"{k}{v}" for k, v in self.mesh.shape.items()
                    if v > 1 or k == "data")
    return (f"{text}; remat {self.config.model.remat}; mesh {axes}, "
            f"{self.mesh.size} of {jax.device_count()} devices")

  @property
  def mesh(self) -> Any:
    return self.state.step.sharding.mesh


def ready(config: Config, seed: int = 0, stage: int = 0,
          batch: dict[str, Any] | None = None) -> Ready:
  """Builds a stage's step and everything it takes.

  Args:
    config: of a run; its weights are loaded, or drawn where it names none.
    seed: of what is drawn.
    stage: its place in config.stages.
    batch: of this process's rows; None is one made up (`made_up`).
  """
  chosen = config.stages[stage]
  mesh = make_mesh(config.mesh)
  step, _, _, parts = abstract_stage(config, chosen, mesh)
  patterns = [p for s in config.stages for p in s.train]
  params = flatten(init_params(parts, mesh, patterns,
                               jax.random.key(seed))[0])
  rates = trainables(params, chosen.train)
  trained, frozen = split(params, rates)
  state = new_state(trained, frozen, make_optimizer(chosen, rates), mesh)
  put = lambda b: place(b, mesh)
  batch = batch or made_up(config, chosen, parts, seed)
  return Ready(config, chosen, parts, step, state, put(batch), put)


def made_up(config: Config, stage: StageConfig, parts: Parts,
            seed: int = 0) -> dict[str, Any]:
  """A global batch of random words and pixels: one sample a row, all full.

  Images come first, words after them; the last words are labelled.

  Raises:
    InputError: a row that is too short for its images.
  """
  data, rng = config.data, np.random.default_rng(seed)
  spec = batch_spec(data, parts.image_size, declared(config, stage))
  batch = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), spec)
  places = data.images_per_row * parts.tokens_per_image
  if places >= data.row_length:
    raise InputError(
        f"data.row_length = {data.row_length} has no room for "
        f"{data.images_per_row} images of {parts.tokens_per_image} tokens and "
        "a word")
  words = vocabulary(parts)
  batch["tokens"][:] = rng.integers(0, words, batch["tokens"].shape)
  batch["targets"][:, :-1] = batch["tokens"][:, 1:]
  batch["loss_weights"][:, -data.labels_per_row - 1:-1] = 1
  batch["positions"][:] = np.arange(data.row_length)
  batch["segment_ids"][:] = 1
  batch["images"][:] = rng.integers(0, 256, batch["images"].shape)
  batch["image_segment_ids"][:] = 1
  batch["image_boxes"][:] = (0, 0, parts.image_size, parts.image_size)
  batch["visual_index"][:] = -1
  batch["visual_index"][:, :places] = np.arange(places)
  return batch


def vocabulary(parts: Parts) -> int:
  """V of the model's text side."""
  model = parts.model
  part = model.decoder if parts.config.kind == "vlm" else model.text
  return part.config.vocab_size
