"""AlignVLM with Llama-3.1-8B: table 6, three stages. See _recipes.py.

  align-jax plan --config alignvlm/llama31_8b
  align-jax plan --config alignvlm/llama31_8b:connector=ovis
"""

from pathlib import Path

from ml_collections import ConfigDict

from align_jax.config import load_config

_BASE = Path(__file__).with_name("_recipes.py")


def get_config(arg: str = "") -> ConfigDict:
  """arg: connector=, preset= and data=, see _recipes.py."""
  chosen = ",".join(filter(None, ("recipe=llama31_8b", arg)))
  return load_config(f"{_BASE}:{chosen}")
