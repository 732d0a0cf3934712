"""InstructBLIP and BLIP-2, as transformers' ...ForConditionalGeneration.

  vision_model.*          our tower/       EVA-CLIP's ViT-g
  query_tokens, qformer.*, language_projection.*
                          our connector/   the "qformer"
  language_model.*        our decoder/     Vicuna, or what else we know

Of InstructBLIP the whole is read, where its language model is a decoder. Of
BLIP-2, whose language models are OPT and T5, tower and Q-Former are.
"""

from collections.abc import Mapping
from typing import Any

from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps import Family, Part
from align_jax.hub.keymaps import qformer as keys
from align_jax.hub.keymaps.eva import BLIP2_VISION, INSTRUCTBLIP_VISION
from align_jax.hub.keymaps.whole_config import (
    WholeConfig,
    connector_part,
    part_of_it,
    read_parts,
    section,
    whole_family,
)

# Our option: transformers' name, and the default of its config class.
_SIZES = {
    "depth": ("num_hidden_layers", 12),
    "period": ("cross_attention_frequency", 2),
    "width": ("hidden_size", 768),
    "heads": ("num_attention_heads", 12),
    "mlp_width": ("intermediate_size", 3072),
}

# The names inside a running model, which some versions wrote.
_RENAME = ((r"^model\.(?=vision_model\.|qformer\.|query_tokens|language_)",
            ""),)


def qformer_options(raw: Mapping[str, Any], text: bool) -> dict[str, Any]:
  """The connector's options out of a whole config.json.

  Args:
    raw: config.json.
    text: whether it reads instructions (InstructBLIP).

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  given = dict(raw.get("qformer_config") or {})
  fields = Fields({"model_type": "qformer"} | given)
  sizes = {ours: fields.take(*theirs) for ours, theirs in _SIZES.items()}
  fields.expect("hidden_act", "gelu")
  fields.expect("layer_norm_eps", 1e-12)
  fields.expect("position_embedding_type", "absolute")
  for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
    fields.take(name, None)  # of training
  words = fields.take("vocab_size", 30_522)
  positions = fields.take("max_position_embeddings", 512)
  width = (raw.get("vision_config") or {}).get("hidden_size", 1408)
  # transformers takes the tower's, whatever is written.
  fields.take("encoder_hidden_size", width)
  fields.expect("use_qformer_text_input", False)
  options = sizes | {"queries": raw.get("num_query_tokens", 32), "text": text}
  if text:
    options |= {"words": words, "positions": positions,
                "instruction_length": positions}
  return fields.finish(dict, options)


def _connector(raw: Mapping[str, Any], text: bool) -> Part:
  """The Q-Former of a config.json."""
  given = raw.get("qformer_config") or {}
  period, depth = (given.get(*_SIZES[name]) for name in ("period", "depth"))
  return connector_part(
      "qformer", keys.INSTRUCTBLIP if text else keys.BLIP2,
      lambda raw: qformer_options(raw, text),
      rename=keys.rename(period, depth), ignored=keys.IGNORED)


def _parts(raw: Mapping[str, Any], vision: Family,
           text: bool) -> dict[str, Part]:
  return {"tower": Part(vision, "vision_config", "vision_model."),
          "connector": _connector(raw, text),
          "decoder": Part(section(raw, "text_config", "opt"), "text_config",
                          "language_model.")}


def read_config(raw: Mapping[str, Any]) -> WholeConfig:
  """config.json of InstructBLIP -> WholeConfig.

  Raises:
    ForeignConfigError: naming everything in it that is not understood.
  """
  fields = Fields(dict(raw))
  parts = _parts(raw, INSTRUCTBLIP_VISION, text=True)
  found = read_parts(fields, raw, parts)
  for name in ("qformer_config", "num_query_tokens", "image_token_index",
               "image_token_id", "use_decoder_only_language_model",
               "tie_word_embeddings"):
    fields.take(name, None)  # read below, or follow from the parts
  found["options"] = fields.section(
      lambda raw: qformer_options(raw, text=True), dict(raw))
  return fields.finish(WholeConfig if all(found.values()) else dict, found
                       | dict(connector="qformer", class_token=True,
                              template="blip",
                              files={"tokenizer": "qformer_tokenizer"}))


def compose(raw: Mapping[str, Any]) -> Family:
  """InstructBLIP with the decoder of a config.json."""
  return whole_family(
      "instructblip", _parts(raw, INSTRUCTBLIP_VISION, text=True), read_config,
      compose, _RENAME, models="InstructBLIP (Vicuna)")


def compose_blip2(raw: Mapping[str, Any]) -> Family:
  """BLIP-2 with the sizes of a config.json."""
  return part_of_it(
      "blip-2", "tower and Q-Former are implemented",
      _parts(raw, BLIP2_VISION, text=False), compose_blip2, _RENAME,
      models="BLIP-2")


INSTRUCTBLIP = compose({"text_config": {"model_type": "llama"}})
BLIP2 = compose_blip2({})
