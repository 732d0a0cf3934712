"""LLaVA's processor for connectors that give another number of tokens."""

from pathlib import Path

from transformers import AutoTokenizer, LlavaProcessor
from transformers.utils import cached_file


class AlignJaxProcessor(LlavaProcessor):
  """LLaVA's, where an image becomes `tokens_per_image` tokens.

  A folder "instructions" beside it holds the tokenizer of a connector that
  reads what is asked: `apply_chat_template` then gives `instruction_ids` as
  well, the text of the first user turn; of more than `instruction_length`
  tokens, the last ones, unless it is 0.
  """

  def __init__(self, image_processor=None, tokenizer=None, patch_size=None,
               vision_feature_select_strategy=None, chat_template=None,
               image_token="<image>", num_additional_image_tokens=0,
               tokens_per_image=0, instruction_length=0, **kwargs):
    self.tokens_per_image = tokens_per_image
    self.instruction_length = instruction_length
    self.instructions = None
    super().__init__(
        image_processor, tokenizer, patch_size,
        vision_feature_select_strategy, chat_template, image_token,
        num_additional_image_tokens, **kwargs)

  def replace_image_token(self, image_inputs, image_idx, **kwargs):
    return self.image_token * self.tokens_per_image

  @classmethod
  def from_pretrained(cls, folder, *args, **kwargs):
    made = super().from_pretrained(folder, *args, **kwargs)
    found = [cached_file(folder, f"instructions/{name}",
                         _raise_exceptions_for_missing_entries=False)
             for name in ("tokenizer_config.json", "tokenizer.json")]
    if found[0]:
      made.instructions = AutoTokenizer.from_pretrained(
          Path(found[0]).parent, truncation_side="left")
    return made

  def apply_chat_template(self, conversation, *args, **kwargs):
    out = super().apply_chat_template(conversation, *args, **kwargs)
    if self.instructions is None or not hasattr(out, "keys"):
      return out
    many = isinstance(conversation[0], (list, tuple))
    asked = [_asked(c) for c in (conversation if many else [conversation])]
    length = self.instruction_length
    cut = dict(truncation=True, max_length=length) if length else {}
    ids = [self.instructions(text, **cut)["input_ids"] for text in asked]
    longest = max(map(len, ids))
    ids = [row + [0] * (longest - len(row)) for row in ids]
    if kwargs.get("return_tensors") == "pt":
      import torch
      ids = torch.tensor(ids)
    out["instruction_ids"] = ids
    return out


def _asked(conversation):
  """The text of the first user turn."""
  content = next(m for m in conversation if m["role"] == "user")["content"]
  if not isinstance(content, str):
    content = "\n".join(p["text"] for p in content if p["type"] == "text")
  return content.replace("<image>", "").strip()
