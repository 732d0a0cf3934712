"""SEA-PRIME (arXiv 2408.11813, table 1): SigLIP at 384 and Cambrian's data.

  align-jax plan --config sea/prime:llm=llama3_8b

Stage 1: Cambrian's 2.5M alignment pairs, SEA's loss beside theirs. Stage 2:
Cambrian-7M, with the tower trained at 2e-6. Batch and other rates are
LLaVA-1.5's, which the paper says it follows. (Cambrian's own scripts have 4e-5
in stage 2 for 8B and 13B, and a warm-up of 0.06 in stage 1.) Arguments as
sea/llava15's, with siglip and unfreeze fixed.
"""

from pathlib import Path

from ml_collections import ConfigDict

from align_jax.config import load_config

PLANS = ("llm=vicuna_7b", "llm=gemma_2b", "llm=phi3_mini", "llm=llama3_8b",
         "llm=vicuna_13b")

ALIGNMENT, INSTRUCTIONS = 2_500_000, 7_000_000  # samples, as the paper rounds


def get_config(arg: str = "") -> ConfigDict:
  """arg: see sea/llava15, without tower and unfreeze."""
  base = Path(__file__).with_name("llava15.py")
  c = load_config(":".join([str(base), ",".join(
      filter(None, [arg, "tower=siglip", "unfreeze=on"]))]))
  c.name = c.name.replace("llava15", "sea_prime")
  pairs = dict(kind="llava", options=dict(
      path="data/alignment_2.5m.jsonl", image_root="data"))
  captions = c.data.sources.captions
  if captions.kind == "labelled":
    captions.options.source = ConfigDict(pairs)
  else:
    c.data.sources.captions = ConfigDict(pairs)
  c.data.sources.instructions.options.path = "data/Cambrian7M.jsonl"
  c.stages[0]["steps"] = -(-ALIGNMENT // 256)
  c.stages[1]["steps"] = -(-INSTRUCTIONS // 128)
  return c
