"""A small CLIP on icon scenes that no other split shares: SEA's teacher.

  align-jax train --config mini/icon_clip:tokenizer=DIR --workdir runs/clip
  align-jax convert export runs/clip DIR --to hf-clip

One command of configs/mini/study_sea.py does both.

  stage names    one thing, up to nine times, each time in another colour;
                 named without a colour
  stage scenes   the same for half of the images; the others show two or three
                 things, with their colours, which questions ask for too

Of captions with colours those of a batch are told apart by the colours alone,
and a single icon is little of an image: trained on such pairs from the start
a tower knew every colour and the right one of all names in 1 to 5 % of images.
Nor did leaving the colours out of the captions help; many copies did.

A patch is as large as a scene's cell, so that it shows one thing.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
  """arg: "tokenizer=DIR", learnt with --ends."""
  chosen = dict(item.split("=", 1) for item in arg.split(",") if item)
  scenes = lambda **options: dict(kind="icon_scenes", options=dict(
      split="tower", scenes=60_000, **options))

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
          max_positions=24, eos_token=1, embed_width=96),
          tokenizer=chosen.get("tokenizer", "")),
      dtype="float32", frozen_dtype="float32", remat="none"))
  c.mesh = ConfigDict(dict(data=1))
  c.data = ConfigDict(dict(
      sources=dict(
          one=scenes(form="names", seed=0, least=1, most=1, copies=9),
          several=scenes(form="captions", seed=1, least=2, most=3)),
      template="caption", rows=160, row_length=24, images_per_row=1,
      labels_per_row=1, pack=False, streams=1))
  stage = lambda name, steps, rate, data: dict(
      name=name, steps=steps, train={"*": rate},
      objectives={"contrastive": 1.0}, data=data, schedule="cosine",
      warmup=0.1, weight_decay=0.2, b2=0.98, clip_norm=1.0)
  c.stages = [stage("names", 300, 1.5e-3, dict(one=1.0)),
              stage("scenes", 500, 1.0e-3, dict(one=0.5, several=0.5))]
  c.log_every = 25
  c.save_every = 500
  return c
