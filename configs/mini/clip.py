"""The small CLIP tower that this package ships, on easy-VQA's training images.

  align-jax train --config mini/clip --workdir runs/mini_clip
  align-jax convert export runs/mini_clip align_jax/weights/mini_clip

`make mini-clip` does both, in some minutes on two CPU cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.name = "mini_clip"
  c.seed = 0
  c.model = ConfigDict(dict(
      kind="clip",
      tower=dict(kind="clip", config=dict(
          image_size=64, patch_size=16, width=128, layers=3, heads=4,
          mlp_width=512,
          # Backgrounds are near 0.9, so an empty patch is near 0. CLIP norms
          # each patch before the first layer, which hides how far from 0 it
          # was: all that tells grey from black. A wide std keeps patches
          # small beside the places' embeddings, and so leaves it visible.
          mean=(0.9, 0.9, 0.9), std=(1.0, 1.0, 1.0))),
      # 16 words: see the tokenizer.
      text=dict(kind="clip", config=dict(
          vocab_size=16, width=64, layers=2, heads=4, mlp_width=256,
          max_positions=8, eos_token=3, embed_width=64),
          tokenizer="pkg:align_jax/weights/mini_clip"),
      dtype="float32", frozen_dtype="float32", remat="none"))
  c.data = ConfigDict(dict(
      # 3,578 images are few: unmirrored and in their places they gave 96 %
      # of the test images' shapes, where the views give more than 99 %.
      sources=dict(train=dict(kind="views", options=dict(
          source=dict(kind="easy_vqa",
                      options=dict(split="train", form="captions")),
          copies=48, shift=8, mirror=True))),
      template="caption", rows=64, row_length=8, images_per_row=1,
      labels_per_row=1, pack=False, streams=1))
  c.stages = [dict(
      name="contrast", steps=2500, train={"*": 2e-3},
      objectives={"contrastive": 1.0}, data={"train": 1.0},
      # With less decay the class token picks out a patch or two, and a mean
      # over patches tells colours apart less well (95.8 % instead of 98.0 %).
      schedule="cosine", warmup=0.05, weight_decay=0.5, b2=0.98,
      clip_norm=1.0)]
  c.log_every = 20
  c.save_every = 500
  return c
