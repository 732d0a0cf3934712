"""SigLIP-so400m and Llama-3.1-8B on rows of 16,384 tokens, 16 images each.

Rows this long are cut over `context`: four chips share a row, each with a
quarter of its tokens.

  align-jax plan --config scale/llama31_8b_long
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.name = "llama31_8b_long"
  c.model = ConfigDict(dict(
      kind="vlm",
      tower=dict(published="siglip_so400m_384", layer=-2),
      connector=dict(kind="mlp", options={}),
      decoder=dict(published="llama31_8b"),
      remat="full"))
  c.mesh = ConfigDict(dict(data=1, fsdp=64, context=4))
  c.data = ConfigDict(dict(
      sources=dict(train=dict(kind="llava", options=dict(
          path="data/train.jsonl"))),
      template="chat", rows=64, row_length=16_384, images_per_row=16,
      labels_per_row=2048, pack=True, streams=64))
  c.stages = [dict(
      name="all", steps=10_000, train={"*": 1e-5},
      objectives={"next_token": 1.0}, data={"train": 1.0},
      weight_decay=0.0, clip_norm=1.0)]
  c.plan = ConfigDict(dict(topology="v5e:16x16", misses={}))
  return c
