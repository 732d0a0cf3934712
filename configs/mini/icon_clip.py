"""A small CLIP on icon scenes that no other split shares: SEA's teacher.

  align-jax train --config mini/icon_clip:tokenizer=DIR --workdir runs/clip
  align-jax convert export runs/clip DIR --to hf-clip

One command of configs/mini/study_sea.py does both.

An image shows one thing three to nine times. Seven of ten are named without a
colour, with each copy in another; three with theirs. Neither is a nicety:
captions with colours alone are told apart by the colours alone, and a single
icon is so little of an image that nothing was learnt of names in 600 steps,
with or without colours said. With copies the class token is a mean over what
patches show, which is what labels of patches need, too.

A patch is as large as a scene's cell, so that it shows one thing.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
  """arg: "tokenizer=DIR", learnt with --ends."""
  chosen = dict(item.split("=", 1) for item in arg.split(",") if item)
  scenes = lambda **options: dict(kind="icon_scenes", options=dict(
      split="tower", scenes=60_000, least=1, most=1, copies=9, **options))

  c = ConfigDict()
  c.name = "icon_clip"
  c.seed = 0
  c.model = ConfigDict(dict(
      kind="clip",
      tower=dict(kind="clip", config=dict(
          image_size=96, patch_size=32, width=128, layers=4, heads=4,
          mlp_width=512,
          # As in mini/clip: grounds are pale.
          mean=(0.9, 0.9, 0.9), std=(1.0, 1.0, 1.0))),
      text=dict(kind="clip", config=dict(
          vocab_size=1024, width=64, layers=1, heads=2, mlp_width=256,
          max_positions=16, eos_token=1, embed_width=96),
          tokenizer=chosen.get("tokenizer", "")),
      dtype="float32", frozen_dtype="float32", remat="none"))
  c.mesh = ConfigDict(dict(data=1))
  c.data = ConfigDict(dict(
      sources=dict(
          named=scenes(form="names", seed=0),
          coloured=scenes(form="captions", seed=1)),
      template="caption", rows=160, row_length=16, images_per_row=1,
      labels_per_row=1, pack=False, streams=1))
  c.stages = [dict(
      name="contrast", steps=600, train={"*": 1.5e-3},
      objectives={"contrastive": 1.0}, data=dict(named=0.7, coloured=0.3),
      schedule="cosine", warmup=0.05, weight_decay=0.2, b2=0.98,
      clip_norm=1.0)]
  c.log_every = 25
  c.save_every = 500
  return c
