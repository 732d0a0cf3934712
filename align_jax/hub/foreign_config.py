"""Reading a foreign config.json so that nothing in it is overlooked.

A field that is not understood may change what the model computes. So every
field is either taken, expected to have the one value that is implemented, or
known to be harmless; any other that is switched on is refused by name.
"""

from collections.abc import Callable
from typing import Any

from align_jax.errors import InputError

# What transformers writes into any config, and what only training, generation
# or bookkeeping reads. (`vocab_size` stands in vision configs of old.)
_HARMLESS = frozenset("""
  architectures auto_map model_type torch_dtype dtype transformers_version
  use_cache return_dict output_hidden_states output_attentions torchscript
  use_bfloat16 id2label label2id problem_type finetuning_task name_or_path
  bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
  forced_bos_token_id forced_eos_token_id max_length min_length do_sample
  early_stopping num_beams num_beam_groups diversity_penalty temperature top_k
  top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
  encoder_no_repeat_ngram_size num_return_sequences chunk_size_feed_forward
  remove_invalid_values exponential_decay_length_penalty suppress_tokens
  begin_suppress_tokens bad_words_ids output_scores return_dict_in_generate
  pruned_heads cross_attention_hidden_size tie_encoder_decoder
  task_specific_params prefix
  tokenizer_class initializer_range initializer_factor attention_dropout
  hidden_dropout dropout classifier_dropout vocab_size cache_implementation
  transformers.js_config
""".split())


class ForeignConfigError(InputError):
  """A config.json with fields that are not understood; lists all of them."""


class Fields:
  """The fields of a config.json, each to be accounted for.

  Args:
    hf: the fields.
    what: they are of, for people; a config.json of its model_type if "".
  """

  def __init__(self, hf: dict[str, Any], what: str = ""):
    self._rest = dict(hf)
    self._what = what or f"{hf.get('model_type', '?')!r} config.json"
    self._faults: list[str] = []

  def take(self, name: str, default: Any) -> Any:
    """The value of a field that the caller understands."""
    return self._rest.pop(name, default)

  def expect(self, name: str, *allowed: Any) -> Any:
    """The value of a field, of which only some are implemented."""
    value = self._rest.pop(name, allowed[0])
    if value not in allowed:
      self.refuse(name, value, allowed)
    return value

  def refuse(self, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    known = ", ".join(map(repr, allowed))
    self.fault(f"{name} {value!r} is not implemented (known: {known})")

  def refuse_rest(self, name: str, rest: dict[str, Any]) -> None:
    """Refuses what is left inside a nested field."""
    for key, value in rest.items():
      if value:
        self.fault(f"unknown field {name}.{key} = {value!r}")

  def section(self, read: Callable[[dict[str, Any]], Any],
              hf: dict[str, Any]) -> Any:
    """What `read` makes of a nested config; None once its faults are noted."""
    try:
      return read(hf)
    except ForeignConfigError as error:
      self.fault(str(error).replace("\n", "\n  "))
      return None

  def fault(self, text: str) -> None:
    self._faults.append(text)

  def finish(self, make: Any, arguments: dict[str, Any]) -> Any:
    """make(**arguments), once nothing is left over.

    Raises:
      ForeignConfigError: listing every fault.
    """
    for name, value in self._rest.items():
      if value and name not in _HARMLESS and not name.startswith("_"):
        self.fault(f"unknown field {name} = {value!r}; it may change what the "
                   "model computes")
    made = None
    try:
      made = make(**arguments)
    except ValueError as error:
      self.fault(str(error))
    if self._faults:
      raise ForeignConfigError(
          f"this {self._what} cannot be followed:\n  "
          + "\n  ".join(self._faults))
    return made
