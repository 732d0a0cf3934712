"""C13: training steps fed by the loader, beside steps fed one batch."""

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.bench import Options
from align_jax.bench.cases import ready, tiny_llava
from align_jax.bench.figure import Figure
from align_jax.bench.timing import paired
from align_jax.config import Config, SourceConfig
from align_jax.data.images import ImageReader
from align_jax.data.pipeline import Pipeline
from align_jax.data.render import Renderer

SAMPLES, SIDE = 256, 320


def run(options: Options) -> Iterator[Figure]:
  """A step with the loader / with the same batch again and again."""
  with tempfile.TemporaryDirectory() as folder:
    config = write(tiny_llava(8192), Path(folder), options.seed)
    case = ready(config, options.seed)
    batches = iter(Pipeline(
        config.data, {}, Renderer(words(), "plain",
                                  case.parts.tokens_per_image),
        ImageReader(None, case.parts.image_size), options.seed))
    first = next(batches)
    case.batch = case.place(first)
    state = {"next": case.place(next(batches))}

    def loaded() -> Any:
      """As the training loop: the next batch is read during the step."""
      loss = case(state["next"])
      state["next"] = case.place(next(batches))
      return loss

    try:
      times = paired({"loader": loaded, "one_batch": case}, options.rounds)
    finally:
      batches.close()
  yield Figure(
      "c13", f"a step with the loader (JPEG of {SIDE} pixels, tokenized, "
      "packed) / with one batch over and over", shapes=case.shapes,
      dtype=config.model.dtype, goal=1.05,
      **times.ratio("loader", "one_batch"))


def write(config: Config, folder: Path, seed: int) -> Config:
  """The config with LLaVA-style data made up in a folder."""
  from PIL import Image

  rng = np.random.default_rng(seed)
  entries = []
  for i in range(SAMPLES):
    small = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(small).resize((SIDE, SIDE)).save(
        folder / f"{i}.jpg", quality=90)
    said = lambda n: " ".join(f"w{k}" for k in rng.integers(0, 900, n))
    entries.append({
        "id": str(i), "image": f"{i}.jpg", "conversations": [
            {"from": "human", "value": "<image>\n" + said(20)},
            {"from": "gpt", "value": said(20)}]})
  (folder / "data.json").write_text(json.dumps(entries), encoding="utf-8")
  source = SourceConfig("llava", {"path": str(folder / "data.json")})
  return dataclasses.replace(config, data=dataclasses.replace(
      config.data, sources={"made_up": source}, template="plain",
      labels_per_row=64, images_per_row=2, row_length=256, streams=1))


def words() -> Any:
  """A tokenizer of a thousand words, made here."""
  from tokenizers import Tokenizer, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  names = ["[pad]", "[bos]", "[unk]", "[eos]", "\n"]
  table = {name: i for i, name in enumerate(names)}
  table |= {f"w{i}": len(names) + i for i in range(900)}
  tokenizer = Tokenizer(models.WordLevel(table, unk_token="[unk]"))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return PreTrainedTokenizerFast(
      tokenizer_object=tokenizer, pad_token="[pad]", bos_token="[bos]",
      unk_token="[unk]", eos_token="[eos]")


