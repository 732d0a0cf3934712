"""The tower that the package ships: what it is, and what it is not."""

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from easy_vqa import get_test_image_paths, get_train_image_paths
from PIL import Image

from align_jax.data.easy_vqa.facts import COLORS, SHAPES
from align_jax.data.easy_vqa.source import EasyVQA
from align_jax.evals.probe import probe_accuracy
from align_jax.hub.locate import locate
from align_jax.hub.pretrained import load_params, load_tokenizer, read_spec
from align_jax.hub.tower_face import load_tower

WEIGHTS = "pkg:align_jax/weights/mini_clip"
FOLDER = locate(WEIGHTS)


@functools.cache
def manifest() -> dict[str, Any]:
  return json.loads((FOLDER / "manifest.json").read_text())


def hashes(paths: dict[int, str]) -> set[str]:
  return {hashlib.sha256(Path(p).read_bytes()).hexdigest()
          for p in paths.values()}


def test_is_small_and_complete() -> None:
  files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
  assert sum(files.values()) <= 5_000_000
  assert set(files) >= {
      "README.md", "config.json", "manifest.json", "model.safetensors",
      "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"}


def test_was_trained_on_no_test_image() -> None:
  """All of its images are training images, none is a test image's equal."""
  trained = set(manifest()["images"])
  assert len(trained) > 3000
  assert trained <= hashes(get_train_image_paths())
  assert not trained & hashes(get_test_image_paths())


def test_says_how_it_was_made() -> None:
  made = manifest()
  assert made["command"].startswith("align-jax train --config mini/clip")
  assert len(made["commit"]) >= 40 and made["versions"]["jax"]
  card = (FOLDER / "README.md").read_text()
  assert "synthetic shapes" in card and "easy-VQA" in card


def test_loads_in_transformers_and_gives_our_features() -> None:
  theirs, info = transformers.CLIPModel.from_pretrained(
      FOLDER, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  pictures = [Image.open(get_test_image_paths()[i]) for i in range(4)]
  processor = transformers.CLIPImageProcessorPil.from_pretrained(FOLDER)
  given = processor(pictures, return_tensors="pt")["pixel_values"]
  tokenizer = load_tokenizer(WEIGHTS)
  words = tokenizer(["a blue circle", "a gray triangle"])["input_ids"]
  with torch.no_grad():
    want = theirs(pixel_values=given, input_ids=torch.tensor(words),
                  output_hidden_states=True)
  for layer in (-1, -2):
    tower = load_tower(WEIGHTS, layer=layer)
    pixels = tower.process(pictures)
    np.testing.assert_allclose(
        pixels, given.numpy().transpose(0, 2, 3, 1), atol=1e-6)
    hidden = want.vision_model_output.hidden_states[layer][:, 1:].numpy()
    gap = np.abs(np.asarray(tower(pixels)) - hidden).max()
    assert gap < 1e-4 * max(1, hidden.std())
  spec = read_spec(WEIGHTS)
  dual = spec.config.make()
  ids = jnp.asarray(words)
  shapes = jax.eval_shape(
      lambda key: dual.init(key, dict(
          images=jnp.zeros((1, 1, 64, 64, 3), jnp.uint8),
          image_boxes=jnp.zeros((1, 1, 4), jnp.int32),
          tokens=ids, segment_ids=ids)), jax.random.key(0))["params"]
  params, _ = load_params(spec, shapes)
  images = dual.apply({"params": params}, pixels, method="image_embeds")
  texts = dual.apply({"params": params}, ids, method="text_embeds")
  np.testing.assert_allclose(images, want.image_embeds, atol=1e-4)
  np.testing.assert_allclose(texts, want.text_embeds, atol=1e-4)


def test_words_of_the_captions_and_no_others() -> None:
  tokenizer = load_tokenizer(WEIGHTS)
  assert tokenizer.tokenize("a teal rectangle") == ["a", "teal", "rectangle"]
  assert tokenizer("a teal cat")["input_ids"] == [1, 4, 11, 2, 3]
  assert len(tokenizer) == read_spec(WEIGHTS).config.text.vocab_size == 16
  # The file is these words and nothing else, so it can be made by hand.
  assert tokenizer.get_vocab() == {word: i for i, word in enumerate(
      ["[pad]", "[bos]", "[unk]", "[eos]", "a", *sorted(COLORS),
       *sorted(SHAPES)])}


@pytest.mark.slow
def test_the_card_says_what_a_probe_reads() -> None:
  """From the mean of the patch features, on the official test images."""
  card = (FOLDER / "README.md").read_text()
  for layer in (-1, -2):
    tower = load_tower(WEIGHTS, layer=layer)
    pooled, facts = {}, {}
    for split in ("train", "test"):
      source = EasyVQA(split=split, form="captions")
      pixels = tower.process(source[i]["images"][0]()
                             for i in range(len(source)))
      pooled[split] = np.concatenate([
          np.asarray(tower(pixels[i:i + 256])).mean(1)
          for i in range(0, len(source), 256)])
      facts[split] = [source.facts(i) for i in range(len(source))]
    found = [probe_accuracy(pooled["train"], [f[what] for f in facts["train"]],
                            pooled["test"], [f[what] for f in facts["test"]])
             for what in ("shape", "color")]
    row = re.search(
        rf"mean of the patch features, layer {layer} \| ([\d.]+) % "
        r"\| ([\d.]+) %", card)
    for said, is_ in zip(row.groups(), found):
      assert abs(float(said) - 100 * is_) < 0.3
