"""A whole vision-language model of others, as a run that was never trained.

  model = load_vlm("llava-hf/llava-1.5-7b-hf")
  model.generate("photo.jpg", "What is in the picture?")

It is a `Run`, so whatever reads runs reads it: evaluation, inspection, the
notebooks. Its parts are named in a `ModelConfig` that a config of yours may
hold just as well, to train from there.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from align_jax.api import Run
from align_jax.build import build, init_params
from align_jax.config import (
    Config,
    ConnectorConfig,
    DataConfig,
    EvalConfig,
    MeshConfig,
    ModelConfig,
    PartConfig,
    TilingConfig,
)
from align_jax.errors import InputError
from align_jax.hub.foreign_config import ForeignConfigError
from align_jax.hub.locate import revision
from align_jax.hub.pretrained import Spec, processor_fields, read_spec
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import inference_mesh, make_mesh


def model_config(weights: str | Path, dtype: Any = jnp.float32
                 ) -> ModelConfig:
  """The model in a folder, or of a hub id, as a config says it.

  Raises:
    InputError: nothing there, or no whole vision-language model.
  """
  spec = _whole(weights)
  config, dtype = spec.config, jnp.dtype(dtype).name
  files = {option: str(spec.path / name)
           for option, name in config.files.items()}
  return ModelConfig(
      tower=PartConfig(weights=str(weights), layer=config.layer,
                       class_token=config.class_token),
      connector=ConnectorConfig(kind=config.connector, weights=str(weights),
                                options=dict(config.options) | files),
      decoder=PartConfig(weights=str(weights)),
      dtype=dtype, frozen_dtype=dtype, remat="none")


def load_vlm(weights: str | Path, dtype: Any = jnp.float32,
             mesh: MeshConfig | None = None) -> Run:
  """A whole model with its weights, tokenizer and image processor.

  Args:
    weights: a folder in Hugging Face's layout, or an id on its Hub.
    dtype: of the weights and of the computation.
    mesh: how it lies on the devices, as in `load_run`.

  Raises:
    InputError: nothing there, a model that is not implemented, or weights
      that do not fit; nothing is loaded then.
  """
  spec = _whole(weights)
  heads = spec.config.decoder.kv_heads
  placed = make_mesh(mesh) if mesh else inference_mesh(heads)
  run = checkpoint_run(weights, dtype, Layout(placed))
  # Every key of the file belongs to some part, and all parts are asked for:
  # what nobody wants is refused.
  params, origins = init_params(run.parts, placed, (), jax.random.key(0))
  return dataclasses.replace(run, params=params, origins=origins)


def checkpoint_run(weights: str | Path, dtype: Any = jnp.float32,
                   layout: Layout = Layout()) -> Run:
  """`load_vlm` without the weights.

  Raises:
    InputError: nothing there, or a model that is not implemented.
  """
  spec = _whole(weights)
  model = model_config(weights, dtype)
  config = Config(
      name=name_of(weights), model=model,
      data=DataConfig(template=spec.config.template, tiling=_tiling(spec)),
      stages=(), eval=EvalConfig(max_new_tokens=32))
  return Run(
      workdir=Path("runs") / "hub" / config.name, config=config,
      parts=build(model, layout), params=None, step=0, ends=_ends(spec))


def name_of(weights: str | Path) -> str:
  """What a model's results are filed under."""
  at = Path(weights)
  repository = revision(at.absolute())
  return repository.split("@")[0].replace("/", "--") or (
      at.name if at.exists() else str(weights).split("@")[0].replace(
          "/", "--"))


def _whole(weights: str | Path) -> Spec:
  spec = read_spec(weights)
  if spec.family.kind != "vlm":
    raise InputError(f"{weights} holds a {spec.kind!r} model, not a whole "
                     "vision-language model; load a tower with load_tower, a "
                     "language model with load_decoder")
  return spec


def _tiling(spec: Spec) -> TilingConfig:
  """How images are cut: as config.json says it, or the image processor.

  Raises:
    InputError: the image processor cuts them in another way.
  """
  fields = processor_fields(spec.path)
  if not fields.get("crop_to_patches"):
    return TilingConfig(*spec.config.tiling)
  if spec.family.tiling is None:
    raise InputError(
        f"{spec.path}: its image processor cuts images into tiles "
        "(crop_to_patches), which is not implemented for this model")
  try:
    return TilingConfig(*spec.family.tiling(fields,
                                            spec.config.tower.image_size))
  except ForeignConfigError as error:
    raise InputError(f"{spec.path}: {error}") from error


def _ends(spec: Spec) -> tuple[int, ...]:
  """The tokens that end an answer, as generation_config.json has them."""
  file = spec.path / "generation_config.json"
  given = (json.loads(file.read_text(encoding="utf-8"))
           if file.is_file() else {}).get("eos_token_id")
  if given is None:
    text = spec.raw.get("text_config") or {}
    given = text.get("eos_token_id", spec.raw.get("eos_token_id"))
  return tuple(given) if isinstance(given, list) else (
      () if given is None else (given,))
