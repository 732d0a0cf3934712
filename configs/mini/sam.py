"""SAM in miniature: a frozen Q-Former, and guidance across a set's pictures.

  stage "single" (base=...)  a Q-Former and its map, on single pictures of
                             four to six things: "which thing is red"
  stage "sets" (arm=...)     what an arm trains, on sets of two to four
                             pictures of six things that share one of them,
                             or on stories of three to five (data=stories)

Three queries look at six things, so what to extract matters. Tower and
language model are made by configs/mini/study_sam.py, and frozen but for the
Q-Former's first run: before a frozen language model it found the thing that
is asked for in 20 % of unseen pictures, before one that learns with it in
78 %. A second run (fit=1) trains the Q-Former alone, before the language model
as that was: 66 % after 300 steps.
"""

from ml_collections import ConfigDict

# The world: 112 of the icons' words, six things in a picture.
WORLD = dict(things=6, words=112)
SINGLE = dict(least=4, most=6, words=112, kinds=("thing",))
SCENES, SETS = 12_000, 1200
SIZES = dict(queries=3, depth=12, period=2, width=64, heads=4, mlp_width=256,
             words=2048, positions=16, instruction_length=16)
# Of SAM its six tensors, connector/guidance/*; of VPG-C connector/again_*.
RATE = {"connector/[ag]*": 1e-2}

# An arm's connector, its own options, and what it trains. All guided arms
# train the same six tensors. The score's bias has no gradient, so `frozen`
# is the Q-Former as it is.
ARMS = {
    "sam": ("sam", dict(memory="others"), RATE),
    "self": ("sam", dict(memory="self"), RATE),
    "elsewhere": ("sam", dict(memory="elsewhere"), RATE),
    "vpg_c": ("vpg_c", dict(text=False, layer=2), RATE),
    "frozen": ("sam", dict(memory="others"),
               {"connector/guidance/score_bias": 1e-9}),
}
# The Q-Former that an arm starts from: with the question, or without.
BASES = {"qformer": dict(text=True), "qformer_blind": dict(text=False)}

# What an arm learns: numbers of pictures, the question, tokens of a row and
# of its answer, and the task.
DATA = {"sets": ((2, 3, 4), "shared", 36, 8, "icon_sets"),
        "stories": ((3, 4, 5), "ending", 48, 12, "icon_stories")}


def pictures(split: str, data: str = "sets") -> dict[str, dict]:
  """Sources by name, one for each number of pictures."""
  counts, asks, *_ = DATA[data]
  return {f"{data}_{n}": dict(kind="icon_sets", options=dict(
      split=split, sets=SETS, images=n, asks=asks, **WORLD)) for n in counts}


def get_config(arg: str = "") -> ConfigDict:
  """arg: "arm=sam" (or another of ARMS) or "base=qformer" (of BASES),
  "data=sets" (of DATA), "from=DIR", the study's folder, "l=3" and "k=9";
  "fit=1" with a base: its second run."""
  chosen = dict(item.split("=", 1) for item in arg.split(",") if item)
  base = chosen.get("base", "")
  made = f"{chosen.get('from', 'runs/mini_sam')}/prepared"
  arm = chosen.get("arm", "sam")
  data = chosen.get("data", "sets")
  counts, _, length, labels, task = DATA[data]
  kind, own, train = (("qformer", BASES[base], {}) if base else ARMS[arm])
  options = dict(SIZES, **own)
  if options.get("text", True):
    options |= dict(tokenizer=f"{made}/lm/model")
  if kind == "sam":
    options |= dict(preset="paper", layer_h=int(chosen.get("l", 3)),
                    layer_c=int(chosen.get("k", 9)))
  fit = base and bool(int(chosen.get("fit", 0)))
  start = "qformer" if options.get("text", True) else "qformer_blind"

  c = ConfigDict()
  c.name = f"sam_base_{base}" if base else f"sam_{arm}"
  c.seed = 0
  c.model = ConfigDict(dict(
      kind="vlm", tower=dict(weights=f"{made}/tower/model"),
      connector=dict(kind=kind, options=options, weights=(
          f"{made}/base_{start}/{'first' if fit else 'connector'}"
          if fit or not base else "")),
      decoder=dict(weights=f"{made}/lm/model"),
      dtype="float32", frozen_dtype="float32", remat="none"))
  c.mesh = ConfigDict(dict(data=1))
  single = dict(kind="icon_scenes", options=dict(
      split="train", form="questions", scenes=SCENES, questions=4, **SINGLE))
  sources = dict(single=single) if base else pictures("train", data)
  c.data = ConfigDict(dict(
      sources=sources, features=f"{made}/features/features",
      # Every sample in a row of its own: an image of one is no other
      # sample's companion, and rows are short.
      template="blip", rows=64 if base else 16,
      row_length=28 if base else length,
      images_per_row=1 if base else max(counts),
      labels_per_row=12 if base else labels, pack=False, streams=1))
  c.stages = [dict(
      name="single", steps=500 if fit else 1500,
      train={"connector/*": 1e-3} | ({} if fit else {"decoder/*": 5e-4}),
      objectives={"next_token": 1.0}, data=dict(single=1.0),
      schedule="cosine", warmup=0.1, b2=0.98, clip_norm=1.0)] if base else [
          dict(name="sets", steps=300, train=train,
               objectives={"next_token": 1.0},
               data=dict.fromkeys(sources, 1.0),
               schedule="cosine", warmup=0.05, clip_norm=1.0)]
  if not base and arm == "frozen":
    c.stages[0]["steps"] = 1
  c.eval = ConfigDict(dict(
      task=task, options=dict(sets=100, **WORLD), batch=50,
      max_new_tokens=12) if not base else dict(
          task="icon_scenes", batch=64, max_new_tokens=12, options=dict(
              scenes=100, alignment=False, scene=SINGLE)))
  c.log_every = 25
  c.save_every = 1000
  return c
