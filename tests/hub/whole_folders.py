"""Folders that transformers writes: whole models, tiny, random."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, processors

from tests.evals.tiny_run import save_tokenizer
from tests.hub.llava_folder import logits_of, picture, scaled

__all__ = ["logits_of", "picture"]

SIDE, PATCH, ROWS, QUERIES = 8, 4, 107, 3
VISION = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2,
              num_attention_heads=2, image_size=SIDE, patch_size=PATCH)
TEXT = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, bos_token_id=1,
            eos_token_id=2, pad_token_id=0)
QFORMER = dict(vocab_size=90, hidden_size=16, num_hidden_layers=3,
               num_attention_heads=4, intermediate_size=24,
               max_position_embeddings=40)
OVIS_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}"
    "{{ '<image>\n' }}{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}")


def _eos(model: Any) -> None:
  model.generation_config = transformers.GenerationConfig(
      bos_token_id=1, eos_token_id=2, pad_token_id=0)


def _words(folder: Path, around: tuple[str, str] = ("", "")) -> Any:
  """A tokenizer that puts these tokens of its own around a text."""
  words = transformers.AutoTokenizer.from_pretrained(save_tokenizer(folder))
  words.chat_template = None
  known = words.get_vocab()
  parts = [p for p in (around[0], "$A", around[1]) if p]
  words.backend_tokenizer.post_processor = processors.TemplateProcessing(
      single=parts, pair=[*parts, "$B"],
      special_tokens=[(p, known[p]) for p in around if p])
  return words


def instructblip(folder: Path, rows: int = ROWS, dtype: Any = None,
                 seed: int = 0, **options: Any) -> tuple[Any, Any]:
  """(model, processor), written to a folder."""
  words = _words(folder / "words", ("<|im_start|>", ""))
  processor = transformers.InstructBlipProcessor(
      transformers.BlipImageProcessorPil(size=dict(height=SIDE, width=SIDE)),
      words, _words(folder / "reads", ("<|im_start|>", "<|im_end|>")),
      num_query_tokens=QUERIES)
  config = transformers.InstructBlipConfig(
      vision_config=VISION, qformer_config=QFORMER,
      text_config=dict(model_type="llama", vocab_size=rows, **TEXT),
      num_query_tokens=QUERIES,
      image_token_index=words.convert_tokens_to_ids("<image>"), **options)
  config._attn_implementation = "eager"
  model = scaled(transformers.InstructBlipForConditionalGeneration(config),
                 seed)
  _eos(model)
  if dtype is not None:
    model.to(dtype)
  model.save_pretrained(folder)
  processor.save_pretrained(folder)
  return model, processor


def ovis2(folder: Path, stride: int = 1, tied: bool = False, seed: int = 0,
          tiles: int = 1, side: int = SIDE, patch: int = PATCH,
          **cutting: Any) -> tuple[Any, Any]:
  """(model, processor), written to a folder; `cutting` is the processor's."""
  words = _words(folder / "words")
  names = ["<image>", "<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>",
           "<IMG_ROW>", "<IMG_END>"]
  words.add_tokens([AddedToken(n, special=True, normalized=False)
                    for n in names], special_tokens=True)
  ids = words.convert_tokens_to_ids(names)
  processor = transformers.Ovis2Processor(
      transformers.Ovis2ImageProcessorPil(
          size=dict(height=side, width=side), crop_to_patches=tiles > 1,
          max_patches=tiles, **cutting),
      words, OVIS_TEMPLATE, image_seq_length=(side // patch // stride) ** 2)
  config = transformers.Ovis2Config(
      vision_config=VISION | dict(
          vocab_size=30, hidden_stride=stride, image_size=side,
          patch_size=patch),
      text_config=dict(model_type="qwen2", vocab_size=ROWS,
                       tie_word_embeddings=tied, **TEXT),
      vocab_size=ROWS, hidden_size=TEXT["hidden_size"],
      tie_word_embeddings=tied, image_token_id=ids[1],
      visual_indicator_token_ids=ids[2:])
  config._attn_implementation = "eager"
  model = scaled(transformers.Ovis2ForConditionalGeneration(config), seed)
  _eos(model)
  model.save_pretrained(folder)
  processor.save_pretrained(folder)
  return model, processor


def asked(processor: Any, images: list[Any], words: str) -> Any:
  """What transformers' processor makes of a question."""
  if hasattr(processor, "qformer_tokenizer"):
    return processor(images=images[0], text=words, return_tensors="pt")
  content = [{"type": "image", "image": image} for image in images]
  return processor.apply_chat_template(
      [{"role": "user", "content": [*content, {"type": "text",
                                               "text": words}]}],
      add_generation_prompt=True, tokenize=True, return_dict=True,
      return_tensors="pt")


def theirs(model: Any, processor: Any, images: list[Any], words: str,
           steps: int = 8) -> tuple[str, Any]:
  """(the answer, the logits of the prompt) as transformers gives them."""
  batch = asked(processor, images, words)
  with torch.no_grad():
    logits = model(**batch).logits[0]
    made = model.generate(**batch, do_sample=False, max_new_tokens=steps)
  new = made[0, batch["input_ids"].shape[1]:]
  return (processor.tokenizer.decode(new, skip_special_tokens=True).strip(),
          logits.float().numpy())
