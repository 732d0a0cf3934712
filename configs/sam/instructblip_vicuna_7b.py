"""SAM on InstructBLIP-Vicuna-7B (arXiv 2408.12867), and what it is beside.

  align-jax plan  --config sam/instructblip_vicuna_7b
  align-jax train --config sam/instructblip_vicuna_7b --workdir RUN \
      --config.model.tower.weights=Salesforce/instructblip-vicuna-7b \
      --config.model.connector.weights=Salesforce/instructblip-vicuna-7b \
      --config.model.decoder.weights=Salesforce/instructblip-vicuna-7b \
      --config.model.connector.options.tokenizer=FOLDER

Arguments, NAME=VALUE with commas between:
  connector  sam (default): six tensors are trained, 1,182,593 parameters, and
             all else is frozen, as the authors' code has it
             vpg_c: the nearest rival, Cheetah's (2308.04152), on the same
             model and data; its 6.3M parameters are trained
             qformer: plain InstructBLIP, its Q-Former and projection trained
             on the same data (2305.06500 trains the Q-Former; its rate and
             batch there, 1e-5 and 128, are from memory). Untrained, as SAM
             compares with it, it is evaluated by its hub id and needs no run.
  preset     released_code (default), paper, recommended: see connectors/sam.py

The loss is that of the answer's words alone. A prompt is the images of a
sample, one after another, then bos and the instruction, of which the Q-Former
keeps the last 128 tokens, and in training the LLM too; answers are generated
from all of it. InstructBLIP's tokenizer must have
"</s>" as its bos, as in LAVIS, where every prompt begins with token 2 (the
hub's tokenizer_config.json says so too); FOLDER holds the Q-Former's, BERT's
with "[DEC]" (`qformer_tokenizer` of the hub's model).

On the step of connector=sam the compiler of libtpu 0.0.42.1 overflows its
stack unless it has a larger one, as `plan` gives it (parallel/topology.py) and
on TPUs who trains should:
LIBTPU_INIT_ARGS=--fibers_default_thread_stack_size=1048576.

MmLINK, on which SAM was trained, is not published: the data are our stand-in,
`align-jax data build linked_images`. Learning rate, batch, epochs and warm-up
are not stated either; those here are ours.
"""

from ml_collections import ConfigDict

from align_jax.errors import InputError
from align_jax.registry import nearest

PLANS = ("connector=sam", "connector=sam,preset=paper", "connector=vpg_c",
         "connector=qformer")

# What is trained, and its learning rate: not stated; ours. What starts at
# zero and is small bears a larger one than a whole Q-Former.
TRAINED = {"sam": {"connector/guidance/*": 1e-4},
           "vpg_c": {"connector/again_*": 1e-4},
           "qformer": {"connector/*": 1e-5}}

# Why a goal of `make plan-all` is missed; measured with libtpu 0.0.42.1.
_KEPT = {"T5": "what a connector keeps for its backward pass is not counted: "
               "here states and scores of the Q-Former's layers, up to 9 GB"}
_MOVED = {"T3": "1.16 to 1.17: the compiler gathers some matrices of the "
                "frozen layers for what is computed again and once more for "
                "its gradient"}
MISSES = {"sam": _MOVED | _KEPT, "qformer": _MOVED | _KEPT, "vpg_c": _KEPT}

# MmLINK's size; samples a step are not stated: ours, what 64 rows hold of the
# stand-in's sets of three images on average.
SAMPLES, BATCH = 69_000, 160


def get_config(arg: str = "") -> ConfigDict:
  """arg: see the module."""
  chosen = dict(connector="sam", preset="released_code")
  for item in filter(None, arg.split(",")):
    name, _, value = item.partition("=")
    if name not in chosen:
      raise InputError(f"configs/sam: no argument {name!r}"
                       f"{nearest(name, chosen)} (known: {', '.join(chosen)})")
    chosen[name] = value
  kind = chosen["connector"]
  if kind not in TRAINED:
    raise InputError(f"configs/sam: connector={kind}{nearest(kind, TRAINED)} "
                     f"is none of {', '.join(TRAINED)}")

  c = ConfigDict()
  c.name = f"instructblip_vicuna_7b_{kind}"
  options = dict(instruction_length=128, long="left", tokenizer="")
  if kind == "sam":
    c.name += f"_{chosen['preset']}"
    options["preset"] = chosen["preset"]
  c.model = ConfigDict(dict(
      kind="vlm",
      tower=dict(published="eva_g", layer=-1, class_token=True),
      connector=dict(kind=kind, options={} if kind == "vpg_c" else options),
      # Vicuna-7B v1.1, with a row for "[PAD]", as the hub's model pads it.
      decoder=dict(kind="llama", config=dict(
          vocab_size=32_064, width=4096, layers=32, heads=32, kv_heads=32,
          mlp_width=11_008, norm_eps=1e-6, rope_theta=10_000.0,
          max_positions=2048, tied_head=False)),
      remat="full"))
  c.mesh = ConfigDict(dict(data=1, fsdp=8))
  # Rows of two or three samples of two to five images.
  c.data = ConfigDict(dict(
      sources=dict(sets=dict(kind="linked_images", options=dict(
          path="data/linked_images"))),
      template="blip", prompt_length=128, rows=64, row_length=512,
      images_per_row=8, labels_per_row=256, pack=True, streams=8))
  c.stages = [dict(
      name="guide", steps=-(-SAMPLES // BATCH), train=TRAINED[kind],
      objectives={"next_token": 1.0}, data={"sets": 1.0},
      schedule="cosine", warmup=0.03, weight_decay=0.05, clip_norm=1.0)]
  c.plan = ConfigDict(dict(topology="v5e:2x4", misses=MISSES[kind]))
  return c
