"""Texts through `load_tower`: tokenized as in training, then embedded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
import transformers

from align_jax.errors import InputError
from align_jax.hub.tower_face import load_tower
from tests.parity.towers_reference import difference, randomise

VISION = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1,
              num_attention_heads=2, image_size=16, patch_size=8)
TEXT = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=12)
WORDS = ["a cat", "two dogs", "Tea, pot!"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
  """CLIP with a tokenizer of letters, padded with the end as OpenAI's."""
  letters = "abcdefghijklmnopqrstuvwxyz,!"
  tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>",
            "<|endoftext|>"]
  tokenizer = transformers.CLIPTokenizer(
      vocab={t: i for i, t in enumerate(tokens)}, merges=[])
  model = transformers.CLIPModel(transformers.CLIPConfig(
      projection_dim=12, vision_config=VISION, text_config=TEXT | dict(
          vocab_size=len(tokens), bos_token_id=len(tokens) - 2,
          eos_token_id=len(tokens) - 1, pad_token_id=len(tokens) - 1)))
  randomise(model.eval())
  folder = tmp_path_factory.mktemp("clip_text")
  model.save_pretrained(folder)
  tokenizer.save_pretrained(folder)
  return folder, model, tokenizer


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
  """SigLIP with a SentencePiece tokenizer, padded with the end."""
  folder = tmp_path_factory.mktemp("siglip_text")
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter([w.lower() for w in WORDS] * 20),
      model_prefix=str(folder / "spiece"), vocab_size=26, pad_id=-1, bos_id=-1,
      eos_id=1, unk_id=2, unk_piece="<unk>", minloglevel=2,
      hard_vocab_limit=False)
  tokenizer = transformers.SiglipTokenizer(str(folder / "spiece.model"))
  model = transformers.SiglipModel(transformers.SiglipConfig(
      vision_config=VISION, text_config=TEXT | dict(
          vocab_size=30, bos_token_id=0, eos_token_id=1, pad_token_id=1)))
  randomise(model.eval())
  model.save_pretrained(folder)
  tokenizer.save_pretrained(folder)
  return folder, model, tokenizer


def reference(model: Any, tokenizer: Any, texts: list[str], padding: Any
              ) -> torch.Tensor:
  ids = tokenizer(texts, padding=padding, max_length=12,
                  return_tensors="pt")["input_ids"]
  with torch.no_grad():
    found = model.get_text_features(input_ids=ids)
  found = getattr(found, "pooler_output", found)
  return found / found.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("name, padding", [
    ("clip", True), ("siglip", "max_length")])
def test_equals_the_reference_on_its_own_tokens(
    name: str, padding: Any, request: pytest.FixtureRequest) -> None:
  folder, model, tokenizer = request.getfixturevalue(name)
  tower = load_tower(folder)
  want = reference(model, tokenizer, WORDS, padding)
  got = tower.text(WORDS)
  assert difference(got, want) < 1e-4
  assert np.abs(got[0] - got[1]).max() > 1e-2
  np.testing.assert_allclose(tower.text(WORDS[1]), got[1:2], atol=1e-6)
  tokens, segments = tower.tokens(WORDS)
  assert tokens.shape == segments.shape == (3, 12)
  assert tokens.dtype == np.int32 and (segments.min(1) == 0).any()


def test_an_ensemble_of_templates(clip) -> None:
  folder, model, tokenizer = clip
  templates = ["a {}", "{} of {}"]
  each = [reference(model, tokenizer, texts, True) for texts in (
      ["a cat", "a dog"], ["cat of cat", "dog of dog"])]
  want = sum(each)
  want = want / want.norm(dim=-1, keepdim=True)
  got = load_tower(folder).text(["cat", "dog"], templates)
  assert difference(got, want) < 1e-4
  with pytest.raises(ValueError, match="templates without {}: 'a cat'"):
    load_tower(folder).text(["cat"], ["{}", "a cat"])


def test_nothing_is_cut_off(clip) -> None:
  tower = load_tower(clip[0])
  with pytest.raises(InputError, match="more than 12 tokens: "
                                       "'abcdefghijklm' has 15"):
    tower.text(["cat", "abcdefghijklm"])
  with pytest.raises(ValueError, match="no texts"):
    tower.text([])
