"""A tokenizer of one's own: byte-level BPE, learnt from a data set's text.

For small language models, whose parameters a large vocabulary would eat up.
"""

from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from align_jax.data.example import PLACEHOLDER, Source
from align_jax.errors import InputError

# <eos> may not have id 2: to a CLIP's config that says "where the highest id
# is", which here would be any word.
SPECIAL = ("<pad>", "<eos>", "<bos>")
_BYTES = 256


def texts(sources: Sequence[Source]) -> Iterator[str]:
  """What is said in the examples of some sources, turn by turn.

  A text with a space before it is another to byte-level BPE, so each turn
  counts in both forms: so words have one token at the start of an answer too.
  """
  for source in sources:
    for index in range(len(source)):
      for turn in source[index]["conversation"]:
        said = turn["content"].replace(PLACEHOLDER, "").strip()
        yield said
        if turn["role"] == "assistant" and len(said) < 40:
          yield f" {said}"


def train_bpe(sources: Sequence[Source], size: int,
              ends: bool = False) -> PreTrainedTokenizerFast:
  """Learns a vocabulary; the same text gives the same.

  Args:
    sources: of examples, whose turns are the text.
    size: V, with bytes and special tokens.
    ends: <eos> is added too, as a CLIP's text tower wants it.

  Returns:
    A tokenizer that adds <bos>, knows any text, and needs no unknown token.

  Raises:
    InputError: a vocabulary too small for all bytes.
  """
  if size < _BYTES + len(SPECIAL):
    raise InputError(f"a byte-level vocabulary has {_BYTES} bytes and "
                     f"{len(SPECIAL)} special tokens, more than {size}")
  pad, eos, bos = SPECIAL
  backend = Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.train_from_iterator(texts(sources), trainers.BpeTrainer(
      vocab_size=size, special_tokens=list(SPECIAL), show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
  after = f" {eos}" if ends else ""
  backend.post_processor = TemplateProcessing(
      single=f"{bos} $A{after}", pair=f"{bos} $A $B{after}",
      special_tokens=[(t, backend.token_to_id(t)) for t in (bos, eos)])
  return PreTrainedTokenizerFast(
      tokenizer_object=backend, pad_token=pad, bos_token=bos, eos_token=eos)
