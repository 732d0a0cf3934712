"""A model with a connector that transformers lacks, with the code for it.

The folder holds `modeling_align_jax.py`, a small torch file of ours that is
LLaVA with another connector, `connector_align_jax.py`, that connector (with
what it imports beside it), and config.json's `auto_map` names them:

  AutoModelForImageTextToText.from_pretrained(FOLDER, trust_remote_code=True)

A connector that can be written is a file in `hub/remote/` and an entry of
`hub/remote_connectors.py`.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.errors import InputError
from align_jax.hub import export_vlm as shared
from align_jax.hub.keymaps import Family
from align_jax.hub.keymaps.llava import (
    LlavaConfig,
    llava_family,
    takes_normed,
)
from align_jax.hub.remote_code import copy_code
from align_jax.hub.remote_connectors import FOLDER, NEWLINE, Sizes, form_of
from align_jax.hub.write import Tensor, write_safetensors

CODE = FOLDER / "modeling_align_jax.py"

_PROJECTOR = "model.multi_modal_projector."


def export_remote(run: Any, merged: Any, folder: Path,
                  max_bytes: int = 4 << 30) -> list[Path]:
  """Writes the whole folder; arguments and result as `export_llava` has them.

  Raises:
    InputError: a connector or an option that the torch file does not know.
  """
  model = merged.parts.config
  kind, module = model.connector.kind, merged.parts.model.connector
  form, tiling = form_of(kind, module), merged.config.data.tiling
  if model.prompt_tokens:
    raise InputError(f"learned prompt tokens have no torch form in {CODE.name}")
  config = merged.parts.model.tower.config
  options = form.options(module, Sizes(
      config.patches + model.tower.class_token, config.width,
      module.dim_out, module.vocab_size))
  tower, decoder = (shared.out_family(merged, p) for p in ("tower", "decoder"))
  language = merged.parts.model.decoder.config
  token = shared.image_token(run.tokenizer, language.vocab_size)
  whole = LlavaConfig(
      tower=config,
      decoder=dataclasses.replace(language, vocab_size=token.rows),
      layer=model.tower.layer, class_token=model.tower.class_token,
      image_token=token.id)
  written = _config(llava_family(tower, decoder), whole, model)
  written["connector_options"] = {
      "vocab_size": language.vocab_size,
      "embed_scale": language.embed_scale,
      "tokens": merged.parts.tokens_per_image if tiling.kind else
      shared.tokens_of_image(merged.parts),
      "tiled": bool(tiling.kind),
      "newline": model.newline or getattr(module, "newline", False),
      "after_norm": takes_normed(whole.tower, whole.layer)} | options
  inside = Family(kind, form.rules, lambda raw: raw, lambda c: {})
  tensors = [
      *shared.part_tensors(merged, "tower", tower, "model.vision_tower."),
      *_newline(merged),
      *(dataclasses.replace(t, key=_connected(t.key, form.rename(module)))
        for t in shared.part_tensors(merged, "connector", inside)),
      *map(_in_memory, shared.with_rows(
          shared.part_tensors(merged, "decoder", decoder),
          [decoder.rules[name][0] for name in ("embed_vd", "head_vd")],
          token))]
  folder.mkdir(parents=True, exist_ok=True)
  copy_code(folder, f"connector_{form.file}", tiling.kind)
  (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
  shared.write_processor(
      run, token, folder,
      remote="processing_tiles_align_jax" if tiling.kind else
      "processing_align_jax")
  shared.write_generation(run, token, folder)
  return write_safetensors(folder, tensors, max_bytes)


def _connected(key: str, renamed: Callable[[str], str]) -> str:
  """A connector's tensor as the torch model calls it."""
  inside = "" if key == NEWLINE else "connector."
  return f"{_PROJECTOR}{inside}{renamed(key)}"


def _newline(merged: Any) -> list[Tensor]:
  """The model's own, if it has one."""
  shape = merged.shapes.get("newline_xd")
  return [] if shape is None else [Tensor(
      _PROJECTOR + NEWLINE, shape.shape, np.dtype(shape.dtype),
      functools.partial(merged.value, "newline_xd", 0))]


def _in_memory(tensor: Tensor) -> Tensor:
  """A decoder's tensor as a model of ours in torch calls it: there is no
  conversion from older names for a model type that transformers lacks."""
  key = tensor.key
  if key.startswith("model."):
    key = "model.language_model." + key.removeprefix("model.")
  return dataclasses.replace(tensor, key=key)


def _config(family: Family, whole: LlavaConfig, model: Any) -> dict[str, Any]:
  import transformers

  try:
    written = family.write_config(whole)
  except ValueError as error:
    raise InputError(str(error)) from error
  name = "AlignJaxForConditionalGeneration"
  return written | {
      "architectures": [name],
      "model_type": "align_jax",
      "auto_map": {
          "AutoConfig": f"{CODE.stem}.AlignJaxConfig",
          "AutoModelForImageTextToText": f"{CODE.stem}.{name}"},
      "connector": model.connector.kind,
      "dtype": model.dtype,
      "transformers_version": transformers.__version__,
  }
