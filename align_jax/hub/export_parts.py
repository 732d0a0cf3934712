"""Parts of a vision-language model as folders that others, or we, can read."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.hub import export_vlm as shared
from align_jax.hub.connector_file import save_connector
from align_jax.hub.write import write_safetensors


def export_connector(run: Any, merged: Any, folder: Path,
                     max_bytes: int = 4 << 30) -> list[Path]:
  """The connector alone; `model.connector.weights` names such a folder.

  Arguments and result as `export_llava` has them.
  """
  del run, max_bytes
  connector = merged.parts.config.connector
  params = {}
  for path, shape in merged.shapes.items():
    if path.startswith("connector/"):
      stacked = "layers" in path.split("/")[:-1]
      layers = range(shape.shape[0]) if stacked else (0,)
      values = [merged.value(path, n) for n in layers]
      params[path.removeprefix("connector/")] = (
          np.stack(values) if stacked else values[0])
  save_connector(params, connector.kind, connector.options, folder)
  return sorted(folder.glob("*.safetensors"))


def export_decoder(run: Any, merged: Any, folder: Path,
                   max_bytes: int = 4 << 30) -> list[Path]:
  """The decoder in its family's Hugging Face layout, with its tokenizer.

  Adapters are added to the weights beside them, so that the folder holds an
  ordinary model. Arguments and result as `export_llava` has them.
  """
  family = shared.out_family(merged, "decoder")
  written = family.write_config(merged.parts.model.decoder.config)
  files = write_safetensors(
      folder, shared.part_tensors(merged, "decoder", family), max_bytes)
  (folder / "config.json").write_text(json.dumps(
      written | {"dtype": merged.parts.config.dtype}, indent=2) + "\n")
  run.tokenizer.save_pretrained(folder)
  return files
