"""The Q-Former's weights in BLIP-2 and InstructBLIP, as transformers has them.

  query_tokens           queries        qformer.*   layers and embeddings
  language_projection.*  map to the LLM's width

Relative to the whole checkpoint; `RENAME` takes LAVIS' names to these. Older
files name the text embeddings of BLIP-2 "embeddings.*": those of the retrieval
models, which InstructBLIP shares.
"""

from align_jax.hub.keymaps import Rules
from align_jax.hub.keymaps.connectors import affine, dense

_LAYER = "qformer.encoder.layer.{n}."


def _attending(ours: str, theirs: str, memory: str) -> Rules:
  """BertAttention: three maps to heads, one back, and a LayerNorm."""
  rules: Rules = {}
  for name, foreign, width in (("q", "query", "e"), ("k", "key", memory),
                               ("v", "value", memory)):
    key = f"{theirs}.attention.{foreign}"
    rules[f"{ours}{name}_{width}hk"] = (
        f"{key}.weight", f"(h k) {width} -> {width} h k")
    rules[f"{ours}{name}_bias_hk"] = (f"{key}.bias", "(h k) -> h k")
  return rules | {
      f"{ours}o_hke": (f"{theirs}.output.dense.weight", "e (h k) -> h k e"),
      f"{ours}o_bias_e": (f"{theirs}.output.dense.bias", "e -> e"),
      **affine(f"{ours}norm", f"{theirs}.output.LayerNorm", "e")}


def _feeding(ours: str, theirs: str) -> Rules:
  """BertIntermediate and BertOutput."""
  start = f"stack/layers/{ours}_"
  return {
      **dense(start + "up", "ef", start + "up_bias",
              f"{_LAYER}intermediate{theirs}.dense"),
      **dense(start + "down", "fe", start + "down_bias",
              f"{_LAYER}output{theirs}.dense"),
      **affine(start + "norm", f"{_LAYER}output{theirs}.LayerNorm", "e")}


_CROSS = _LAYER.replace("layer.", "look.")

# BLIP-2: queries alone.
BLIP2: Rules = {
    "queries_te": ("query_tokens", "1 t e -> t e"),
    **affine("norm", "qformer.layernorm", "e"),
    **_attending("stack/layers/", _LAYER + "attention", "e"),
    **_attending("stack/cross/layers/", _CROSS + "crossattention", "c"),
    **_feeding("query", "_query"),
    **dense("out", "ed", "out_bias", "language_projection"),
}

# InstructBLIP: instructions as well.
INSTRUCTBLIP: Rules = {
    **BLIP2,
    **affine("norm", "qformer.embeddings.layernorm", "e"),
    "words_ve": ("qformer.embeddings.word_embeddings.weight", "v e -> v e"),
    "positions_le": ("qformer.embeddings.position_embeddings.weight",
                     "l e -> l e"),
    **_feeding("text", ""),
}

# SAM's checkpoint on top of InstructBLIP's (sic: one_2_muliple).
SAM: Rules = {
    **INSTRUCTBLIP,
    "guidance/score_c": ("attn.weight", "1 c -> c"),
    "guidance/score_bias": ("attn.bias", "o -> o"),
    **dense("guidance/h", "eo", "guidance/h_bias", "one_2_muliple.0"),
    **dense("guidance/c", "eo", "guidance/c_bias", "multiple_2_one.0"),
}


def rename(period: int = 2, depth: int = 12) -> tuple[tuple[str, str], ...]:
  """`Family.rename`: LAVIS' names, and looks numbered among themselves.

  Args:
    period: every period-th layer looks at the image.
    depth: layers.
  """
  return (
      (r"^model\.", ""),
      (r"^Qformer\.bert\.encoder\.(one_2_muliple|multiple_2_one)\.", r"\1."),
      (r"^Qformer\.bert\.", "qformer."),
      (r"^llm_proj\.", "language_projection."),
      (r"^t5_proj\.|^opt_proj\.", "language_projection."),
      (r"^(qformer\.embeddings\.)LayerNorm\.", r"\1layernorm."),
      (r"(attention)\.self\.", r"\1.attention."),
      *((rf"^(qformer\.encoder\.)layer\.{n}\.(crossattention\.)",
         rf"\1look.{n // period}.\2") for n in range(0, depth, period)))


# Buffers of older files; pooled outputs and heads of LAVIS' pretraining.
IGNORED = (r"embeddings\.position_ids$", r"^qformer\.pooler\.",
           r"^Qformer\.cls\.")
