"""A whole run in seconds: tiny random parts, real questions, real training."""

import functools
import tempfile
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from align_jax.data.easy_vqa.facts import COLORS, SHAPES
from align_jax.train.loop import train
from align_jax.validate import validate

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' "
    "+ m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
WORDS = [*SHAPES, *COLORS, "yes", "no", *(
    "what is the color of shape does image contain a there not present in "
    "user assistant an").split()]


def save_tokenizer(folder: Path) -> Path:
  """A folder with a tokenizer of one token a word, and a chat template."""
  vocab = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>", "\n", " ", "?"]
  vocab += [lead + word for word in WORDS for lead in ("", " ")]
  backend = Tokenizer(models.WordLevel(
      {token: i for i, token in enumerate(vocab)}, "<unk>"))
  backend.pre_tokenizer = pre_tokenizers.Split(
      Regex(r"\n| ?\w+|[^\w\s]"), "isolated")
  backend.decoder = decoders.Fuse()
  PreTrainedTokenizerFast(
      tokenizer_object=backend, chat_template=TEMPLATE,
      bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<pad>",
      unk_token="<unk>").save_pretrained(folder)
  return folder


def config(folder: Path, connector: str = "mlp", steps: int = 2) -> dict:
  """Of the quickstart's shape, and a hundredth of its size."""
  sizes = dict(width=16, layers=1, heads=2, mlp_width=16)
  return dict(
      name=f"tiny_{connector}",
      model=dict(
          tower=dict(kind="siglip", config=dict(
              image_size=16, patch_size=8, **sizes)),
          connector=dict(kind=connector),
          decoder=dict(kind="llama", tokenizer=str(save_tokenizer(folder)),
                       config=dict(vocab_size=80, **sizes)),
          dtype="float32", frozen_dtype="float32", remat="none"),
      data=dict(
          sources=dict(train=dict(kind="easy_vqa", options=dict(
              split="train", form="questions"))),
          rows=8, row_length=48, labels_per_row=12),
      stages=[dict(name="align", steps=steps, train={"connector/*": 1e-3},
                   data=dict(train=1.0))],
      eval=dict(task="easy_vqa", options=dict(probe=40), batch=8,
                max_new_tokens=4),
      log_every=1)


def make(folder: Path, connector: str = "mlp") -> Path:
  """Trains it in a folder, and gives the folder of the run."""
  workdir = folder / f"run_{connector}"
  train(validate(config(folder / "tokenizer", connector)), workdir,
        show=False)
  return workdir


@functools.cache
def shared(connector: str = "mlp") -> Path:
  """One such run for all test files of this process."""
  keep = tempfile.TemporaryDirectory(prefix="align_jax_tiny_")
  _KEPT.append(keep)  # removed when the process ends
  return make(Path(keep.name), connector)


_KEPT: list[tempfile.TemporaryDirectory] = []
