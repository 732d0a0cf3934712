"""GGUF files with a Llama inside: config, tensors and tokenizer.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Quantised
tensors are expanded row by row, only the rows that are asked for.
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.decoders.transformer import DecoderConfig
from align_jax.errors import InputError

# Token types of the format.
_CONTROL, _USER_DEFINED = 3, 4

# How llama.cpp's `tokenizer.ggml.pre` cuts text before BPE.
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


class GGUFFile:
  """An open GGUF file, readable as `hub.reader.Reader`."""

  def __init__(self, path: Path):
    """Opens the file; tensors stay on the disk.

    Raises:
      InputError: no GGUF file, or one that is cut short.
    """
    import gguf

    self.path = path
    with path.open("rb") as file:
      if file.read(4) != b"GGUF":
        raise InputError(f"{path} is no GGUF file")
    try:
      self._reader = gguf.GGUFReader(str(path))
    except (ValueError, IndexError, KeyError) as error:
      raise InputError(
          f"{path} is cut short or damaged; fetch it again ({error})"
      ) from error
    self._tensors = {t.name: t for t in self._reader.tensors}

  def field(self, name: str, default: Any = None) -> Any:
    """A value of the file's metadata."""
    found = self._reader.get_field(name)
    return default if found is None else found.contents()

  def keys(self) -> Iterable[str]:
    return self._tensors.keys()

  def shape(self, key: str) -> tuple[int, ...]:
    return tuple(int(n) for n in self._tensors[key].shape[::-1])

  def dtype(self, key: str) -> np.dtype:
    """f32: what a quantised tensor expands to."""
    del key
    return np.dtype(np.float32)

  def read(self, key: str, index: tuple[slice, ...]) -> np.ndarray:
    """Part of a tensor in f32; only the rows asked for are expanded."""
    import gguf

    tensor = self._tensors[key]
    if len(self.shape(key)) == 1:  # quantised types have two axes or more
      return gguf.dequantize(tensor.data, tensor.tensor_type)[index]
    rows = gguf.dequantize(tensor.data[index[0]], tensor.tensor_type)
    return rows[(slice(None), *index[1:])]

  def origin(self, key: str) -> str:
    return f"{self.path}:{key}"


@functools.lru_cache(maxsize=4)
def open_gguf(path: Path) -> GGUFFile:
  """The file, opened once: listing a vocabulary takes a second."""
  return GGUFFile(path)


def gguf_config(file: GGUFFile) -> DecoderConfig:
  """The decoder's sizes.

  Raises:
    InputError: naming all that is not implemented.
  """
  faults = []
  kind = file.field("general.architecture")
  if kind != "llama":
    raise InputError(f"{file.path} holds a {kind!r} model; only 'llama' is "
                     "implemented for GGUF")
  get = lambda name, default=None: file.field(f"llama.{name}", default)

  scaling = get("rope.scaling.type", "none")
  if scaling != "none":
    faults.append(f"llama.rope.scaling.type {scaling!r} is not implemented "
                  "(known: 'none')")
  if "rope_freqs.weight" in file.keys():
    faults.append("rope_freqs.weight: frequencies scaled by a tensor are not "
                  "implemented; take the safetensors checkpoint")
  for name in ("expert_count", "attention.sliding_window",
               "attention.clamp_kqv", "logit_scale", "attention.scale"):
    if get(name):
      faults.append(f"llama.{name} = {get(name)} is not implemented")
  heads, width = get("attention.head_count"), get("embedding_length")
  head_width = get("attention.key_length") or width // heads
  if get("attention.value_length", head_width) != head_width:
    faults.append("keys and values of different widths")
  if get("rope.dimension_count", head_width) != head_width:
    faults.append(f"llama.rope.dimension_count "
                  f"{get('rope.dimension_count')} of {head_width}: rotating a "
                  "part of a head is not implemented")
  if isinstance(heads, list) or isinstance(
      get("attention.head_count_kv"), list):
    faults.append("head counts that differ between layers")
  if faults:
    raise InputError(f"{file.path} cannot be followed:\n  "
                     + "\n  ".join(faults))
  return DecoderConfig(
      vocab_size=file.shape("token_embd.weight")[0],
      width=width,
      layers=get("block_count"),
      heads=heads,
      kv_heads=get("attention.head_count_kv") or heads,
      head_width=head_width,
      mlp_width=get("feed_forward_length"),
      rope_theta=float(get("rope.freq_base", 10_000.0)),
      # Written as the nearest f32; 9.99999975e-06 was meant as 1e-5.
      norm_eps=float(f"{get('attention.layer_norm_rms_epsilon'):.6g}"),
      tied_head="output.weight" not in file.keys(),
      max_positions=get("context_length"),
  )


def _cut_words(pre: str, path: Path) -> Any:
  """The pre-tokenizer that llama.cpp names `pre`."""
  from tokenizers import Regex
  from tokenizers import pre_tokenizers as cut

  bytes_ = functools.partial(cut.ByteLevel, add_prefix_space=False)
  if pre in ("gpt-2", "default"):
    return bytes_(use_regex=True)
  if pre == "smollm":
    return cut.Sequence([cut.Digits(individual_digits=True),
                         bytes_(use_regex=True)])
  if pre in ("llama-bpe", "llama3", "llama-v3"):
    return cut.Sequence([cut.Split(Regex(_LLAMA3_WORDS), "isolated"),
                         bytes_(use_regex=False)])
  raise InputError(
      f"{path}: tokenizer.ggml.pre {pre!r} is not implemented (known: "
      "'gpt-2', 'smollm', 'llama-bpe'); give a tokenizer folder instead")


def gguf_tokenizer(file: GGUFFile) -> Any:
  """A transformers PreTrainedTokenizerFast with the file's chat template.

  Raises:
    InputError: a kind of tokenizer that is not implemented.
  """
  import tokenizers
  import transformers
  from tokenizers import decoders, models, processors

  get = lambda name, default=None: file.field(f"tokenizer.{name}", default)
  if get("ggml.model") != "gpt2":
    raise InputError(
        f"{file.path}: tokenizer.ggml.model {get('ggml.model')!r} is not "
        "implemented (known: 'gpt2'); give a tokenizer folder instead")
  words = get("ggml.tokens")
  merges = [tuple(merge.split(" ", 1)) for merge in get("ggml.merges")]
  fast = tokenizers.Tokenizer(models.BPE(
      vocab={word: i for i, word in enumerate(words)}, merges=merges,
      fuse_unk=False, byte_fallback=False))
  fast.pre_tokenizer = _cut_words(get("ggml.pre", "default"), file.path)
  fast.decoder = decoders.ByteLevel()
  kinds = get("ggml.token_type") or [1] * len(words)
  special = [w for w, kind in zip(words, kinds) if kind == _CONTROL]
  fast.add_special_tokens(special)
  fast.add_tokens([w for w, kind in zip(words, kinds)
                   if kind == _USER_DEFINED])

  named = {}
  for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"),
                       ("pad", "padding")):
    at = get(f"ggml.{theirs}_token_id")
    if at is not None:
      named[f"{ours}_token"] = words[at]
  if get("ggml.add_bos_token", False):
    bos = named["bos_token"]
    fast.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, words.index(bos))])])
  made = transformers.PreTrainedTokenizerFast(
      tokenizer_object=fast, clean_up_tokenization_spaces=False,
      model_max_length=file.field("llama.context_length", 2048), **named)
  made.chat_template = get("chat_template")
  return made
