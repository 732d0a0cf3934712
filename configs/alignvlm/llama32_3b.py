"""AlignVLM with Llama-3.2-3B: table 6, three stages. See _recipes.py.

  align-jax plan --config alignvlm/llama32_3b
  align-jax plan --config alignvlm/llama32_3b:connector=ovis
"""

from pathlib import Path

from ml_collections import ConfigDict

from align_jax.config import load_config

_BASE = Path(__file__).with_name("_recipes.py")

# What `make plan-all` plans this file with: table 2, and the run with VCR.
PLANS = ("", "connector=mlp", "connector=perceiver", "connector=ovis",
         "data=vcr")


def get_config(arg: str = "") -> ConfigDict:
  """arg: connector=, preset= and data=, see _recipes.py."""
  chosen = ",".join(filter(None, ("recipe=llama32_3b", arg)))
  return load_config(f"{_BASE}:{chosen}")
