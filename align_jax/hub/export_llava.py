"""A model with a linear or MLP connector as LlavaForConditionalGeneration.

The folder loads with `transformers.LlavaForConditionalGeneration` and
`AutoProcessor`, in the key layout of transformers 5: `vision_tower.*`,
`multi_modal_projector.*`, `language_model.model.*`,
`language_model.lm_head.weight`.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.errors import InputError
from align_jax.hub import export_vlm as shared
from align_jax.hub.keymaps import Family
from align_jax.hub.keymaps.llava import (
    LAST_NORM,
    LlavaConfig,
    llava_family,
    takes_normed,
)
from align_jax.hub.write import Tensor, write_safetensors

# A linear connector is the first of LLaVA's two maps; the second is the
# identity, and so is the activation between them.
_LINEAR = {
    "kernel_cd": ("multi_modal_projector.linear_1.weight", "d c -> c d"),
    "bias_d": ("multi_modal_projector.linear_1.bias", "d -> d"),
}


def export_llava(run: Any, merged: Any, folder: Path,
                 max_bytes: int = 4 << 30) -> list[Path]:
  """Writes the whole folder.

  Args:
    run: a `Run`, whose parameters are not needed.
    merged: a `train.merged.Merged`, its parameters.
    folder: where to; made if need be.
    max_bytes: of tensors in one file.

  Returns:
    The files of weights.

  Raises:
    InputError: a connector that LLaVA has no place for, or a tokenizer whose
      reading transformers cannot repeat.
  """
  model = merged.parts.config
  connector = model.connector
  tower, decoder = (shared.out_family(merged, p) for p in ("tower", "decoder"))
  config = merged.parts.model.tower.config
  if why := refusal(merged):
    raise InputError(f"{why}; export it with --to hf-remote")
  token = shared.image_token(run.tokenizer, merged.parts.model.decoder.config
                             .vocab_size)
  whole = LlavaConfig(
      tower=config,
      decoder=dataclasses.replace(merged.parts.model.decoder.config,
                                  vocab_size=token.rows),
      layer=model.tower.layer, class_token=model.tower.class_token,
      image_token=token.id,
      activation="none" if connector.kind == "linear" else
      connector.options.get("activation", "gelu"))
  family = llava_family(tower, decoder)
  written = _config(family, whole, model.dtype)
  tensors = [
      *shared.part_tensors(merged, "tower", tower, "vision_tower."),
      *_last_norm(merged),
      *_connector(merged, family, connector.kind),
      *shared.with_rows(
          shared.part_tensors(merged, "decoder", decoder, "language_model."),
          [f"language_model.{decoder.rules[name][0]}"
           for name in ("embed_vd", "head_vd")], token)]
  folder.mkdir(parents=True, exist_ok=True)
  shared.write_processor(run, token, folder)
  (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
  shared.write_generation(run, token, folder)
  return write_safetensors(folder, tensors, max_bytes)


def refusal(merged: Any) -> str:
  """Why a model cannot be LLaVA; "" if it can."""
  model = merged.parts.config
  connector = model.connector
  if connector.kind not in ("linear", "mlp") or connector.options.get(
      "newline"):
    options = f" {dict(connector.options)}" if connector.options else ""
    return f"connector {connector.kind!r}{options} is not LLaVA's"
  if takes_normed(merged.parts.model.tower.config, model.tower.layer):
    return ("the model reads its tower's features after the last norm, LLaVA "
            "before it")
  if merged.config.data.tiling.kind or model.newline:
    return "the model's images are cut into tiles"
  if model.prompt_tokens:
    return f"the model has {model.prompt_tokens} learned prompt tokens"
  return ""


def _config(family: Family, whole: LlavaConfig, dtype: str) -> dict[str, Any]:
  import transformers

  try:
    written = family.write_config(whole)
  except ValueError as error:
    raise InputError(str(error)) from error
  return written | {"dtype": dtype,
                    "transformers_version": transformers.__version__}


def _last_norm(merged: Any) -> list[Tensor]:
  """The norm that a tower's file has and its features do not go through."""
  source = merged.sources.get("tower")
  if source is None or merged.parts.model.tower.config.post_norm != "none":
    return []
  return [shared.raw(source.reader, theirs, f"vision_tower.{name}")
          for name, theirs in source.names.items()
          if re.match(LAST_NORM, name)]


def _connector(merged: Any, family: Family, kind: str) -> list[Tensor]:
  inside = family.parts["connector"].family
  if kind == "mlp":
    return shared.part_tensors(merged, "connector", inside)
  first = shared.part_tensors(
      merged, "connector", dataclasses.replace(inside, rules=_LINEAR))
  width, dtype = first[0].shape[0], first[0].dtype
  second = "multi_modal_projector.linear_2."
  return [*first,
          Tensor(f"{second}weight", (width, width), dtype,
                 lambda: np.eye(width, dtype=dtype)),
          Tensor(f"{second}bias", (width,), dtype,
                 lambda: np.zeros(width, dtype))]
