"""Hugging Face and GGUF checkpoints, in and out.

  locate       a name -> a folder or file; the Hub's cache
  pretrained   what a checkpoint holds: config, weights, tokenizer, processor
  match fill   tensors -> parameters: strictly, and straight into shards
  keymaps/     what each family calls its weights
  faces tower_face whole    a decoder, a tower, a whole model to call
  write export_*            and the way back
"""

from pathlib import Path
from typing import Any


def load(weights: str | Path, **options: Any) -> Any:
  """Whatever a folder, a file or a hub id holds, ready to be called.

  Args:
    weights: as `locate` takes it.
    **options: of the function below that it comes to, such as `dtype`.

  Returns:
    A whole model as `load_vlm` gives it, a decoder as `load_decoder`, a tower
    as `load_tower`.

  Raises:
    InputError: nothing there, or nothing that is known.
  """
  from align_jax.decoders.transformer import DecoderConfig
  from align_jax.hub.pretrained import read_spec

  spec = read_spec(weights)
  if spec.kind == "vlm":
    from align_jax.hub.whole import load_vlm as load_it
  elif isinstance(spec.config, DecoderConfig):
    from align_jax.hub.faces import load_decoder as load_it
  else:
    from align_jax.hub.tower_face import load_tower as load_it
  return load_it(weights, **options)
