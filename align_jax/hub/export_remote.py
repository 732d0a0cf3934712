"""A model with a connector that transformers lacks, with the code for it.

The folder holds `modeling_align_jax.py`, a small torch file of ours that is
LLaVA with another connector, and config.json's `auto_map` names it:

  AutoModelForImageTextToText.from_pretrained(FOLDER, trust_remote_code=True)

A connector that can be written is a class in that file and a table here.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align_jax.errors import InputError
from align_jax.hub import export_vlm as shared
from align_jax.hub.keymaps import Family, Rules
from align_jax.hub.keymaps.llava import (
    LlavaConfig,
    llava_family,
    takes_normed,
)
from align_jax.hub.write import Tensor, write_safetensors

CODE = Path(__file__).parent / "remote" / "modeling_align_jax.py"

_ALIGN: Rules = {
    "w1_cd": ("w1.weight", "d c -> c d"),
    "w1_bias_d": ("w1.bias", "d -> d"),
    "norm1_scale_d": ("norm1.weight", "d -> d"),
    "norm1_bias_d": ("norm1.bias", "d -> d"),
    "w2_vd": ("w2.weight", "v d -> v d"),
    "w2_bias_v": ("w2_bias", "v -> v"),
    "norm2_scale_v": ("norm2.weight", "v -> v"),
    "norm2_bias_v": ("norm2.bias", "v -> v"),
    "out_norm_scale_d": ("out_norm.weight", "d -> d"),
    "out_norm_bias_d": ("out_norm.bias", "d -> d"),
}


def _align(module: Any) -> dict[str, Any]:
  """The torch file's options of an ALIGN connector.

  Raises:
    InputError: words that are left out, for which it has no form.
  """
  if getattr(module, "keep_words", ()):
    raise InputError("an ALIGN connector with keep_words has no torch form "
                     f"in {CODE.name}")
  flags = module.flags() if hasattr(module, "flags") else None
  return {name: getattr(flags, name, default) for name, default in (
      ("relu", False), ("out_norm", False), ("tied_w2", False),
      ("affine", True), ("biases", False))}


_LINEAR: Rules = {"kernel_cd": ("weight", "d c -> c d"),
                  "bias_d": ("bias", "d -> d")}
_MLP: Rules = {
    "in_cf": ("linear_1.weight", "f c -> c f"),
    "in_bias_f": ("linear_1.bias", "f -> f"),
    "out_fd": ("linear_2.weight", "d f -> f d"),
    "out_bias_d": ("linear_2.bias", "d -> d"),
}


def _mlp(module: Any) -> dict[str, Any]:
  if module.newline:
    raise InputError("an mlp connector with a newline has no torch form in "
                     f"{CODE.name}")
  return {"activation": module.activation}


# Connector -> (its parameters in the torch file, module -> its options there).
CONNECTORS: dict[str, tuple[Rules, Callable[[Any], dict[str, Any]]]] = {
    "align": (_ALIGN, _align),
    "linear": (_LINEAR, lambda module: {}),
    "mlp": (_MLP, _mlp),
}


def export_remote(run: Any, merged: Any, folder: Path,
                  max_bytes: int = 4 << 30) -> list[Path]:
  """Writes the whole folder; arguments and result as `export_llava` has them.

  Raises:
    InputError: a connector or an option that the torch file does not know.
  """
  model = merged.parts.config
  connector = model.connector
  if connector.kind not in CONNECTORS:
    raise InputError(
        f"connector {connector.kind!r} has no torch form in {CODE.name} yet "
        f"(it has: {', '.join(CONNECTORS)})")
  if model.prompt_tokens:
    raise InputError(f"learned prompt tokens have no torch form in {CODE.name}")
  rules, options_of = CONNECTORS[connector.kind]
  options = options_of(merged.parts.model.connector)
  tower, decoder = (shared.out_family(merged, p) for p in ("tower", "decoder"))
  language = merged.parts.model.decoder.config
  token = shared.image_token(run.tokenizer, language.vocab_size)
  whole = LlavaConfig(
      tower=merged.parts.model.tower.config,
      decoder=dataclasses.replace(language, vocab_size=token.rows),
      layer=model.tower.layer, class_token=model.tower.class_token,
      image_token=token.id)
  written = _config(llava_family(tower, decoder), whole, model)
  written["connector_options"] = {
      "vocab_size": language.vocab_size,
      "after_norm": takes_normed(whole.tower, whole.layer)} | options
  inside = Family(connector.kind, rules, lambda raw: raw, lambda c: {})
  tensors = [
      *shared.part_tensors(merged, "tower", tower, "model.vision_tower."),
      *shared.part_tensors(merged, "connector", inside,
                           "model.multi_modal_projector.connector."),
      *map(_in_memory, shared.with_rows(
          shared.part_tensors(merged, "decoder", decoder),
          [decoder.rules[name][0] for name in ("embed_vd", "head_vd")],
          token))]
  folder.mkdir(parents=True, exist_ok=True)
  shared.write_processor(run, token, folder)
  (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
  shared.write_generation(run, token, folder)
  shutil.copyfile(CODE, folder / CODE.name)
  return write_safetensors(folder, tensors, max_bytes)


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
