"""SigLIP-so400m and Llama-3.1-70B on 512 chips, everything trained.

What a recipe of this size takes, planned; not a published recipe. Two images
of 729 visual tokens and 590 tokens of text a row.

  align-jax plan --config scale/llama31_70b:connector=mlp
"""

from ml_collections import ConfigDict

# What `make plan-all` plans this file with.
PLANS = ("connector=align", "connector=mlp")


def get_config(arg: str = "") -> ConfigDict:
  """arg: "connector=align" (default) or "connector=mlp"."""
  chosen = dict(item.split("=") for item in arg.split(",") if item)
  connector = chosen.get("connector", "align")

  c = ConfigDict()
  c.name = f"llama31_70b_{connector}"
  c.model = ConfigDict(dict(
      kind="vlm",
      tower=dict(published="siglip_so400m_384", layer=-2),
      connector=dict(kind=connector, options={}),
      decoder=dict(published="llama31_70b"),
      remat="full"))
  # 128 divides every width, also the tower's 1152; what 512 does not divide
  # would lie whole on every chip.
  c.mesh = ConfigDict(dict(data=4, fsdp=128))
  c.data = ConfigDict(dict(
      sources=dict(train=dict(kind="llava", options=dict(
          path="data/train.jsonl"))),
      template="chat", rows=1024, row_length=2048, images_per_row=2,
      labels_per_row=512, pack=True, streams=64))
  c.stages = [dict(
      name="all", steps=10_000, train={"*": 1e-5},
      objectives={"next_token": 1.0}, data={"train": 1.0},
      weight_decay=0.0, clip_norm=1.0)]
  c.plan = ConfigDict(dict(topology="v5p:8x8x8", misses={}))
  return c
