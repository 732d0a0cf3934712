"""A small tokenizer with a chat template, and examples without files."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

GOLDEN = Path(__file__).parent / "golden"

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nbe kind<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>", "<unk>", "\n", " ")
WORDS = ("what color is the shape there a circle in image these and compare "
         "them yes no blue red both are shapes not say it again be kind user "
         "assistant system one two three image").split()


def word_tokenizer(chat_template: str | None = CHATML,
                   **special: str) -> PreTrainedTokenizerFast:
  """One token a word, its leading space included, so that masks read well."""
  vocab = list(SPECIAL) + [lead + word for word in WORDS
                           for lead in ("", " ")] + list("?.,:")
  backend = Tokenizer(models.WordLevel(
      {token: i for i, token in enumerate(dict.fromkeys(vocab))}, "<unk>"))
  backend.pre_tokenizer = pre_tokenizers.Split(
      Regex(r"\n| ?\w+|[^\w\s]"), "isolated")
  backend.decoder = decoders.Fuse()
  return PreTrainedTokenizerFast(
      tokenizer_object=backend, chat_template=chat_template,
      **{"bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
         "pad_token": "<pad>", "unk_token": "<unk>", **special})


def example(*turns: str, images: int | list = 0, number: int = 0) -> dict:
  """Turns alternate between user and assistant."""
  roles = ("user", "assistant")
  if isinstance(images, int):
    images = [png(10 * number + i) for i in range(images)]
  return {
      "id": str(number), "origin": f"memory:{number}", "images": images,
      "conversation": [{"role": roles[i % 2], "content": turn}
                       for i, turn in enumerate(turns)]}


def png(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
  """A picture of one colour, as a file's bytes."""
  buffer = io.BytesIO()
  pixels = np.full((size[1], size[0], 3), value % 256, np.uint8)
  Image.fromarray(pixels).save(buffer, "PNG")
  return buffer.getvalue()


def mixed_examples(count: int) -> list[dict]:
  """Text only, one image and two images, of several lengths."""
  kinds = (
      lambda i: example("what color ?", "blue", number=i),
      lambda i: example("<image>\nwhat color is the shape ?", "red",
                        images=1, number=i),
      lambda i: example("<image> and <image> compare them", "both are circle",
                        "say it again", "both are circle", images=2,
                        number=i),
      lambda i: example("is there a circle in the image " * (i % 3) + "?",
                        "yes", number=i),
  )
  return [kinds[i % len(kinds)](i) for i in range(count)]


def check_golden(name: str, text: str) -> None:
  """Compares with a file of tests/data/golden, or writes it when asked to."""
  path = GOLDEN / name
  if os.environ.get("UPDATE_GOLDEN"):
    path.write_text(text + "\n", encoding="utf-8")
  assert path.exists(), f"write {path} with UPDATE_GOLDEN=1, then read it"
  assert text + "\n" == path.read_text(encoding="utf-8")
