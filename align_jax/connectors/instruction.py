"""Instructions for connectors that read them, in tokens of their own.

The instruction of a sample is its first user turn without the images' places:
what is known before any answer. All images of the sample read it; of a sample
without images nothing does, and it has none.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from align_jax.data.example import PLACEHOLDER, BadSample, Example
from align_jax.errors import InputError
from align_jax.registry import nearest

LONG = ("refuse", "left")


def instruction_reader(
    tokenizer: str, length: int, long: str, words: int,
) -> Callable[[Example], dict[str, np.ndarray]]:
  """example -> {"instruction": i32[length]}, 0 behind the last token.

  Args:
    tokenizer: folder of the connector's tokenizer. "" where sources give the
      field themselves; an example without it is then a bad sample.
    length: the field's.
    long: what becomes of a longer instruction: "refuse" makes it a bad
      sample, "left" keeps its end and the special tokens around it.
    words: the connector knows; a tokenizer with more is refused.

  Raises:
    InputError: `long` is neither, or the tokenizer does not fit.
  """
  if long not in LONG:
    raise InputError(f"model.connector.options.long: {long!r} is none of "
                     f"{', '.join(LONG)}{nearest(long, LONG)}")

  @functools.cache
  def read() -> Any:
    from align_jax.hub.pretrained import load_tokenizer

    found = load_tokenizer(tokenizer)
    if len(found) > words:
      raise InputError(f"the tokenizer in {tokenizer} has {len(found):,} "
                       f"tokens, the connector {words:,} words; set "
                       "model.connector.options.words")
    found.truncation_side = "left"
    if found.pad_token_id not in (0, None):
      raise InputError(f"the tokenizer in {tokenizer} pads with token "
                       f"{found.pad_token_id}; the connector takes 0 for "
                       "padding")
    return found

  def annotate(example: Example) -> dict[str, np.ndarray]:
    if "instruction" in example.get("extras", {}):
      return {}
    entry = np.zeros(length, np.int32)
    if not example["images"]:
      return {"instruction": entry}
    if not tokenizer:
      raise BadSample(
          example["origin"], "the connector reads instructions: set "
          "model.connector.options.tokenizer to the folder of its tokenizer, "
          'or let the source give extras["instruction"]')
    first = next((m["content"] for m in example["conversation"]
                  if m["role"] == "user"), "")
    text = first.replace(PLACEHOLDER, "").strip()
    cut = dict(truncation=True, max_length=length) if long == "left" else {}
    ids = read()(text, **cut)["input_ids"]
    if len(ids) > length:
      raise BadSample(
          example["origin"], f"an instruction of {len(ids)} tokens, more "
          f"than model.connector.options.instruction_length = {length}; "
          "long='left' drops the beginning of such ones")
    entry[:len(ids)] = ids
    return {"instruction": entry}

  return annotate
