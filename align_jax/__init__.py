"""align_jax: join a vision tower to a language model in JAX.

  import align_jax
  run = align_jax.load_run("runs/quickstart")
  run.generate("photo.png", "what shape is in the image?")

Everything is imported on first use.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_FACES = {
    "load_run": "align_jax.api",
    "load_tower": "align_jax.hub.tower_face",
    "load_decoder": "align_jax.hub.faces",
    "load_vlm": "align_jax.hub.whole",
}
__all__ = ["load_decoder", "load_run", "load_tower", "load_vlm"]


def __getattr__(name: str) -> Any:
  if name not in _FACES:
    raise AttributeError(f"module 'align_jax' has no attribute {name!r}")
  return getattr(importlib.import_module(_FACES[name]), name)


def __dir__() -> list[str]:
  return sorted([*globals(), *_FACES])
