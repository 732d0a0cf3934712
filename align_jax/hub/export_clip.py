"""A CLIP model of our own as a folder in Hugging Face's CLIPModel layout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align_jax.hub.pretrained import save_hf
from align_jax.towers.clip import DualConfig
from align_jax.towers.vit import ViTConfig


def preprocessor(config: ViTConfig) -> dict[str, Any]:
  """preprocessor_config.json of a tower: the shorter side to H, then a crop.

  transformers' CLIPImageProcessor reads it, with whichever backend.
  """
  side = config.image_size
  return {
      "image_processor_type": "CLIPImageProcessor",
      "do_convert_rgb": True,
      "do_resize": True,
      "size": {"shortest_edge": side},
      "resample": 3,  # bicubic
      "do_center_crop": True,
      "crop_size": {"height": side, "width": side},
      "do_rescale": True,
      "rescale_factor": 1 / 255,
      "do_normalize": True,
      "image_mean": list(config.mean),
      "image_std": list(config.std),
  }


def export_clip(params: Mapping[str, Any], config: DualConfig, tokenizer: Any,
                folder: str | Path) -> None:
  """Writes model.safetensors, config.json, the processor and the tokenizer.

  What else lies in the folder, such as a model card, stays.
  """
  folder = Path(folder)
  save_hf(params, "clip", config, folder)
  (folder / "preprocessor_config.json").write_text(
      json.dumps(preprocessor(config.tower), indent=2) + "\n")
  tokenizer.save_pretrained(folder)
