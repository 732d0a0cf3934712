"""A small CLIP on documents: each with its own transcription.

  align-jax train --config mini/doc_clip:tokenizer=DIR --workdir runs/clip
  align-jax convert export runs/clip DIR --to hf-clip

The objective knows no question and no answer. Every other document is a scrap
of a few words, so that to tell one from another is to read. One command of
configs/mini/study_alignvlm.py does both.
"""

from ml_collections import ConfigDict

from align_jax.data.documents.facts import KINDS, SCRAP

SEEN = [kind for whole in KINDS for kind in (SCRAP, whole)]


def get_config(arg: str = "") -> ConfigDict:
  """arg: "tokenizer=DIR", learnt with --ends."""
  chosen = dict(item.split("=", 1) for item in arg.split(",") if item)

  c = ConfigDict()
  c.name = "doc_clip"
  c.seed = 0
  c.model = ConfigDict(dict(
      kind="clip",
      tower=dict(kind="clip", config=dict(
          image_size=128, patch_size=32, width=160, layers=4, heads=5,
          mlp_width=640,
          # As in mini/clip: grounds are pale.
          mean=(0.9, 0.9, 0.9), std=(1.0, 1.0, 1.0))),
      text=dict(kind="clip", config=dict(
          vocab_size=1024, width=96, layers=2, heads=4, mlp_width=384,
          max_positions=64, eos_token=1, embed_width=96),
          tokenizer=chosen.get("tokenizer", "")),
      dtype="float32", frozen_dtype="float32", remat="none"))
  c.mesh = ConfigDict(dict(data=1))
  c.data = ConfigDict(dict(
      sources=dict(documents=dict(kind="documents", options=dict(
          split="tower", form="captions", documents=64_000, kinds=SEEN))),
      template="caption", rows=64, row_length=64, images_per_row=1,
      labels_per_row=1, pack=False, streams=1))
  c.stages = [dict(
      name="contrast", steps=1000, train={"*": 1e-3},
      objectives={"contrastive": 1.0}, data=dict(documents=1.0),
      schedule="cosine", warmup=0.05, weight_decay=0.2, b2=0.98,
      clip_norm=1.0)]
  c.log_every = 25
  c.save_every = 500
  return c
