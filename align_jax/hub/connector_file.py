"""A connector alone, as a folder: model.safetensors and config.json.

  FOLDER/model.safetensors   our own names, "w1_cd", "layers/q_dhk" ...
  FOLDER/config.json         {"model_type": "align_jax_connector",
                              "connector": its kind, "options": {...}}

It is read as any other checkpoint is: slices go straight to the devices that
own them, on whatever mesh, and what does not fit is listed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align_jax.errors import InputError
from align_jax.hub.keymaps import Family
from align_jax.hub.locate import locate
from align_jax.hub.pretrained import Spec, save_hf
from align_jax.hub.safetensors import SafetensorsReader

_TYPE = "align_jax_connector"


def save_connector(params: Mapping[str, Any], kind: str,
                   options: Mapping[str, Any], folder: str | Path) -> None:
  """Writes a connector's parameters, in their own dtypes.

  Args:
    params: flat, {path within the connector: array}.
    kind: its registered name.
    options: that it was made with.
    folder: where; made if need be.
  """
  save_hf(params, _family({p: x.ndim for p, x in params.items()}),
          {"connector": kind, "options": dict(options)}, folder)


def is_connector(weights: str | Path) -> bool:
  """Whether a connector alone lies there."""
  file = Path(weights) / "config.json"
  return file.is_file() and json.loads(file.read_text(encoding="utf-8")).get(
      "model_type") == _TYPE


def read_connector(weights: str | Path, kind: str = "") -> Spec:
  """Says what connector lies in a folder; no tensor is read.

  Args:
    weights: the folder, as `locate` takes it.
    kind: that it must be of; "" is any.

  Returns:
    spec.config is {"connector": kind, "options": {...}}.

  Raises:
    InputError: there is none, or one of another kind.
  """
  path = locate(weights)
  file = path / "config.json"
  raw = (json.loads(file.read_text(encoding="utf-8")) if file.is_file()
         else {})
  if raw.get("model_type") != _TYPE:
    raise InputError(f"{weights} holds no connector; `align-jax convert export "
                     "RUN FOLDER --to connector` writes one")
  if kind and raw["connector"] != kind:
    raise InputError(f"{weights} holds a connector {raw['connector']!r}, and "
                     f"the config asks for {kind!r}")
  reader = SafetensorsReader(path)
  family = _family({key: len(reader.shape(key)) for key in reader.keys()})
  return Spec("connector", {k: raw[k] for k in ("connector", "options")},
              path, family, family, raw=raw)


def _family(axes: Mapping[str, int]) -> Family:
  """Every parameter under its own name, its axes as they are."""
  letters = {n: " ".join("abcdefgh"[:n]) for n in set(axes.values())}
  return Family(
      kind="connector",
      rules={path: (path, f"{letters[n]} -> {letters[n]}")
             for path, n in axes.items()},
      read_config=lambda raw: raw,
      write_config=lambda config: {"model_type": _TYPE} | config)
