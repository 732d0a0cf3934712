"""A small language model on the text of a miniature's world and on English.

  align-jax train --config mini/lm:tokenizer=DIR --workdir runs/mini_lm
  align-jax convert export runs/mini_lm DIR --to hf-decoder

One million parameters. In the world's text words stand where a picture will
stand later, so that it can answer once pictures are words to it.

  stage "lists"  lists of words, of which one asks for the next
  stage "text"   the world's questions and English

Without the lists it copied nothing after 1,200 steps of the world's text; with
them it answers 98 % of the questions on unseen icon scenes. They want large
batches: with half the rows the first stage had hardly begun at its end.

The tokenizer is one of `align-jax data tokenizer`; a study's preparations do
all of it (configs/mini/study_sea.py). A sixth of the English is held out for
perplexity.
"""

from ml_collections import ConfigDict

from align_jax.data.documents.facts import SCRAP

VOCABULARY = 2048
SCENES = 30_000
SIZES = dict(width=128, layers=4, heads=4, mlp_width=344)
# The world of sets, and of its single pictures: see configs/mini/sam.py.
SET = dict(things=6, words=112)
SINGLE = dict(least=4, most=6, words=112,
              kinds=("names", "thing", "there"))

# The text of each world: a source with the weight of its samples.
WORLDS = {
    "icons": {
        # As a picture's nine tokens are once each is the word of its patch.
        "placed": (0.8, dict(kind="icon_scenes", options=dict(
            split="text", form="placed", scenes=SCENES, kinds=(
                "names", "first", "last", "there", "count"))))},
    "documents": {
        "told": (0.79, dict(kind="documents", options=dict(
            split="text", form="told", documents=4 * SCENES, questions=6))),
        # Words read off in their order, as in mini/alignvlm.
        "scraps": (0.2, dict(kind="documents", options=dict(
            split="text", form="told", documents=4 * SCENES, questions=1,
            kinds=(SCRAP,))))},
    "sets": {
        **{f"sets_{n}": (0.1, dict(kind="icon_sets", options=dict(
            split="text", form="told", sets=SCENES, images=n, **SET)))
           for n in (2, 3, 4)},
        **{f"stories_{n}": (0.05, dict(kind="icon_sets", options=dict(
            split="text", form="told", sets=SCENES, images=n, asks="ending",
            **SET))) for n in (3, 4, 5)},
        "told": (0.5, dict(kind="icon_scenes", options=dict(
            split="text", form="told", scenes=SCENES, **SINGLE)))},
}
ENGLISH = dict(kind="english", options=dict(split="train", size=400))
# So many words in a list, of so many of the world's (0: of all). Lists of few
# words are learnt first and carry the others with them.
LISTS = {"lists_16": (5, 16), "lists_32": (8, 32), "lists_64": (8, 64),
         "lists_128": (8, 128), "lists_all": (16, 0)}
# Of the text. Of unseen documents 81 % of the answers were right after 1,000
# steps (of what stands in a cell or a field 90 %), and 73 % of the scraps read
# off whole. Of sets the shared thing was, of 112, in 70, 94 and 99.6 % of those
# of two, three and four pictures; the last colour of a story and which thing
# of a single picture has a colour are not learned.
STEPS = {"documents": 1000, "sets": 2000}


def get_config(arg: str = "") -> ConfigDict:
  """arg: "world=icons" (default), "sets" or "documents", "tokenizer=DIR"."""
  chosen = dict(item.split("=", 1) for item in arg.split(",") if item)
  name = chosen.get("world", "icons")
  world = WORLDS[name]
  # An answer is a word or two, which much English would drown.
  english = {"sets": 0.02, "icons": 0.04, "documents": 0.01}[name]

  # Only the world of icons has as many words as the longest list wants.
  lists = {key: dict(kind="recall", options=dict(
      source=next(iter(world.values()))[1], words=words, known=known))
      for key, (words, known) in LISTS.items()
      if name == "icons" or key != "lists_128"}

  c = ConfigDict()
  c.name = "mini_lm"
  c.seed = 0
  c.model = ConfigDict(dict(
      kind="vlm",
      # No picture is ever seen: the smallest parts that can stand there.
      tower=dict(kind="clip", config=dict(
          image_size=8, patch_size=8, width=8, layers=1, heads=1,
          mlp_width=8)),
      connector=dict(kind="linear", options={}),
      decoder=dict(
          kind="llama", tokenizer=chosen.get("tokenizer", ""),
          config=dict(SIZES, vocab_size=VOCABULARY, max_positions=512)),
      dtype="float32", frozen_dtype="float32", remat="none"))
  c.mesh = ConfigDict(dict(data=1))
  c.data = ConfigDict(dict(
      sources={name: source for name, (_, source) in world.items()}
      | {"english": ENGLISH, **lists},
      # An answer is a word of those before it: behind a space, as there, it
      # is the same token.
      template="blip", rows=10, row_length=320, images_per_row=1,
      labels_per_row=320, pack=True, streams=1))
  stage = lambda name, steps, data, schedule: dict(
      name=name, steps=steps, train={"decoder/*": 3e-3},
      objectives={"next_token": 1.0}, data=data, schedule=schedule,
      warmup=0.05, weight_decay=0.02, b2=0.98, clip_norm=1.0)
  c.stages = [
      stage("lists", 1000, dict.fromkeys(lists, 1.0), "constant"),
      stage("text", STEPS.get(name, 1200), {
          name: weight for name, (weight, _) in world.items()}
          | dict(english=english, lists_all=0.1), "cosine")]
  c.log_every = 25
  c.save_every = 500
  return c
