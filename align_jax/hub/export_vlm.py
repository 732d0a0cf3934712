"""Parts of a vision-language model as folders that others, or we, can read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align_jax.build import Parts
from align_jax.decoders.lora import merged
from align_jax.hub.connector_file import save_connector
from align_jax.hub.keymaps import FAMILIES
from align_jax.hub.pretrained import save_hf
from align_jax.train.select import flatten


def export_connector(params: Mapping[str, Any], parts: Parts,
                     folder: str | Path) -> None:
  """The connector alone; `model.connector.weights` names such a folder.

  Args:
    params: nested, of the whole model.
    parts: that the model was made from.
    folder: where to write.
  """
  connector = parts.config.connector
  save_connector(flatten(params["connector"]), connector.kind,
                 connector.options, folder)


def export_decoder(params: Mapping[str, Any], parts: Parts,
                   folder: str | Path) -> None:
  """The decoder in its family's Hugging Face layout, with its tokenizer.

  Adapters are added to the weights beside them, so that the folder holds an
  ordinary model.

  Args:
    params: nested, of the whole model.
    parts: that the model was made from.
    folder: where to write.
  """
  decoder, spec = parts.model.decoder, parts.specs.get("decoder")
  family = (spec.family if spec and not spec.is_gguf else
            FAMILIES.get(spec.kind if spec else parts.config.decoder.kind))
  save_hf(merged(flatten(params["decoder"]), decoder.lora), family,
          decoder.config, folder)
  parts.tokenizer.save_pretrained(folder)
