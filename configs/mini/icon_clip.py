"""A small CLIP on icon scenes that no other split shares: SEA's teacher.

  align-jax train --config mini/icon_clip:tokenizer=DIR --workdir runs/clip
  align-jax convert export runs/clip DIR --to hf-clip

One command of configs/mini/study_sea.py does both. Half of its images show a
single thing: a contrast among captions of several things says little of any
one of them.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
  """arg: "tokenizer=DIR", learnt with --ends."""
  chosen = dict(item.split("=", 1) for item in arg.split(",") if item)
  scenes = lambda seed, most: dict(kind="icon_scenes", options=dict(
      split="tower", form="captions", scenes=60_000, seed=seed, least=1,
      most=most))

  c = ConfigDict()
  c.name = "icon_clip"
  c.seed = 0
  c.model = ConfigDict(dict(
      kind="clip",
      tower=dict(kind="clip", config=dict(
          image_size=96, patch_size=24, width=128, layers=4, heads=4,
          mlp_width=512,
          # As in mini/clip: grounds are pale.
          mean=(0.9, 0.9, 0.9), std=(1.0, 1.0, 1.0))),
      text=dict(kind="clip", config=dict(
          vocab_size=1024, width=96, layers=2, heads=4, mlp_width=384,
          max_positions=24, eos_token=1, embed_width=96),
          tokenizer=chosen.get("tokenizer", "")),
      dtype="float32", frozen_dtype="float32", remat="none"))
  c.mesh = ConfigDict(dict(data=1))
  c.data = ConfigDict(dict(
      sources=dict(one=scenes(0, 1), several=scenes(1, 3)),
      template="caption", rows=96, row_length=24, images_per_row=1,
      labels_per_row=1, pack=False, streams=1))
  c.stages = [dict(
      name="contrast", steps=1500, train={"*": 1.5e-3},
      objectives={"contrastive": 1.0}, data=dict(one=0.5, several=0.5),
      schedule="cosine", warmup=0.05, weight_decay=0.2, b2=0.98,
      clip_norm=1.0)]
  c.log_every = 25
  c.save_every = 500
  return c
