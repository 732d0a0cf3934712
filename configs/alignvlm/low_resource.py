"""AlignVLM's low-resource runs (section 5.2.2, table 3). See _recipes.py.

  align-jax plan --config alignvlm/low_resource
  align-jax plan --config alignvlm/low_resource:connector=c_abstractor

`preset=released_code` is ALIGN as the published low-resource code has it,
which is not Eq. 1.
"""

from pathlib import Path

from ml_collections import ConfigDict

from align_jax.config import load_config

_BASE = Path(__file__).with_name("_recipes.py")

# What `make plan-all` plans this file with.
PLANS = ("", "connector=c_abstractor")


def get_config(arg: str = "") -> ConfigDict:
  """arg: connector= and preset=, see _recipes.py."""
  chosen = ",".join(filter(None, ("recipe=low_resource", arg)))
  return load_config(f"{_BASE}:{chosen}")
