"""The one decoder against transformers' families, f32, tiny and random.

Llama itself is in test_llama.py. One seed and shape of each family is quick;
more of them, and what else could be asked of each, are in the slow tier.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file  # noqa: E402

from align_jax.decoders.transformer import DecoderConfig  # noqa: E402
from align_jax.errors import InputError  # noqa: E402
from align_jax.hub.faces import LoadedDecoder, load_decoder  # noqa: E402
from align_jax.hub.pretrained import read_spec, save_hf  # noqa: E402
from align_jax.ops.rope import LongRope, YarnScaling  # noqa: E402
from tests.parity.decoders_reference import (  # noqa: E402
  BASE,
  LENGTH,
  VARIANTS,
  V,
  attention_of,
  changed,
  difference,
  greedy,
  logits_of,
  randomise,
  reference,
  says_the_same,
  with_leaves,
)

PROMPT, NEW = 9, 20


@dataclasses.dataclass
class Pair:
  """The reference, ours, the folder between them, and what to read."""
  variant: str
  model: Any
  ours: LoadedDecoder
  folder: Path
  tokens: np.ndarray
  logits: np.ndarray


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: Any) -> Callable[[str], Pair]:
  made: dict[str, Pair] = {}

  def make(variant: str) -> Pair:
    if variant not in made:
      model = reference(variant)
      folder = tmp_path_factory.mktemp(variant)
      model.save_pretrained(folder)
      tokens = np.random.default_rng(1).integers(0, V, (2, LENGTH))
      made[variant] = Pair(variant, model, load_decoder(folder), folder,
                           tokens, logits_of(model, tokens))
    return made[variant]

  return make


# Scalings beside a family's own.
_MORE = ("llama_linear", "qwen2_yarn")


@pytest.fixture(params=[
    pytest.param(v, marks=pytest.mark.slow) if v in _MORE else v
    for v in sorted(VARIANTS)])
def pair(request: Any, pair_of: Callable[[str], Pair]) -> Pair:
  return pair_of(request.param)


def test_logits(pair: Pair) -> None:
  """They agree, are large, and what they come from is not uniform."""
  assert pair.logits.std() >= 1.0
  assert attention_of(pair.model, pair.tokens).max(-1).mean() > 3 / LENGTH
  assert difference(pair.ours(pair.tokens), pair.logits) < 1e-4


def test_generation_token_for_token(pair: Pair) -> None:
  """Beyond windows and original lengths, from prompts of two lengths."""
  prompt, mask = pair.tokens[:, :PROMPT], np.ones((2, PROMPT), int)
  if pair.ours.config.cached_positions is None:
    mask[0, :4] = 0
  theirs = greedy(pair.model, prompt, mask, NEW)
  mine = pair.ours.generate(prompt, mask, max_new_tokens=NEW, eos=())
  np.testing.assert_array_equal(mine, theirs)
  assert len({tuple(row) for row in theirs}) == 2
  assert all(len(set(row)) > 3 for row in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(pair: Pair, side: str) -> None:
  mask = np.ones_like(pair.tokens)
  mask[0, slice(0, 9) if side == "left" else slice(-9, None)] = 0
  theirs = logits_of(pair.model, pair.tokens, mask)
  real = mask.astype(bool)
  assert difference(pair.ours(pair.tokens, mask)[real], theirs[real]) < 1e-4
  # What stands at padding changes nothing.
  other = np.where(real, pair.tokens, 7)
  np.testing.assert_array_equal(pair.ours(pair.tokens, mask)[real],
                                pair.ours(other, mask)[real])


def test_there_and_back_byte_for_byte(pair: Pair, tmp_path: Path) -> None:
  """torch -> ours -> safetensors -> torch, and the config with it."""
  save_hf(pair.ours.params, pair.ours.spec.family, pair.ours.config, tmp_path)
  before = load_file(pair.folder / "model.safetensors")
  after = load_file(tmp_path / "model.safetensors")
  assert before.keys() == after.keys()
  for key, value in before.items():
    assert value.tobytes() == after[key].tobytes(), key
    assert value.shape == after[key].shape
  back, report = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path, output_loading_info=True, attn_implementation="eager")
  assert type(back) is type(pair.model)
  assert not report["missing_keys"] and not report["unexpected_keys"]
  np.testing.assert_array_equal(logits_of(back, pair.tokens), pair.logits)
  assert read_spec(tmp_path).config == pair.ours.config


def _switches(c: DecoderConfig) -> dict[str, dict[str, Any]]:
  """Every peculiarity of a config, and what it is without."""
  off: dict[str, dict[str, Any]] = {"theta": dict(rope_theta=c.rope_theta * 2)}
  for name, plain in (
      ("norm_offset", 0.0), ("qk_norm", False), ("post_norms", False),
      ("attn_soft_cap", 0.0), ("logit_soft_cap", 0.0), ("embed_scale", 1.0),
      ("rotary_width", c.head_width), ("rope_scaling", None),
      ("attn_scale", c.head_width ** -0.5), ("activation", "silu"),
      ("local_rope_theta", 0.0), ("windows", ())):
    if getattr(c, name) != plain:
      also = {"local_rope_theta": 0.0} if name == "windows" else {}
      off[name] = {name: plain} | also
  if c.windows:
    off["wider"] = dict(windows=tuple(w and w + 1 for w in c.windows))
  if len(set(c.windows)) > 1:
    off["other_layers"] = dict(windows=tuple(
        0 if w else max(c.windows) for w in c.windows))
  if c.local_rope_theta:
    off["local_theta"] = dict(local_rope_theta=c.local_rope_theta * 2)
  s = c.rope_scaling
  change = lambda **fields: dict(rope_scaling=dataclasses.replace(s, **fields))
  if isinstance(s, LongRope | YarnScaling):
    off["gain"] = change(gain=1.0)
    off["original"] = change(
        original_max_positions=s.original_max_positions * 4)
  if isinstance(s, LongRope):
    off["long"] = change(long=s.short)
  if isinstance(s, YarnScaling):
    # So far that their boundaries, which are rounded, are others.
    off["beta_fast"] = change(beta_fast=s.beta_fast / 16)
    off["beta_slow"] = change(beta_slow=s.beta_slow / 16)
  return off


def _peculiarities(pair: Pair) -> list[str]:
  c, p = pair.ours.config, pair.ours.params
  off = {name: changed(pair.ours, **fields)
         for name, fields in _switches(c).items()}
  for name in ("q_bias_hk", "k_bias_gk", "v_bias_gk"):
    if c.qkv_bias:
      off[name] = changed(pair.ours, with_leaves(p, **{name: jnp.zeros_like}))
  for name, model in off.items():
    assert difference(model(pair.tokens), pair.logits) > 1e-2, (
        pair.variant, name)
  return sorted(off)


# What a family would not be itself without.
EXPECTED = {
    "llama_linear": "rope_scaling theta",
    "mistral": "theta wider windows",
    "qwen2": "k_bias_gk other_layers q_bias_hk theta v_bias_gk wider windows",
    "qwen2_yarn": "beta_fast beta_slow gain k_bias_gk original q_bias_hk "
                  "rope_scaling theta v_bias_gk",
    "qwen3": "qk_norm theta",
    "gemma": "activation embed_scale norm_offset theta",
    "gemma2": "activation attn_scale attn_soft_cap embed_scale "
              "logit_soft_cap norm_offset other_layers post_norms theta wider "
              "windows",
    "gemma3_text": "activation attn_scale embed_scale local_rope_theta "
                   "local_theta norm_offset other_layers post_norms qk_norm "
                   "rope_scaling theta wider windows",
    "phi3": "rotary_width theta wider windows",
    "phi3_longrope": "gain long original rope_scaling theta",
}


@pytest.mark.parametrize("variant", [
    v if v in ("phi3", "qwen3") else pytest.param(v, marks=pytest.mark.slow)
    for v in sorted(VARIANTS)])
def test_each_peculiarity_matters(
    variant: str, pair_of: Callable[[str], Pair]) -> None:
  """Switched off one at a time, parity is lost."""
  found = _peculiarities(pair_of(variant))
  assert found == sorted(EXPECTED[variant].split())


# Other shapes: five layers with a window to one without, one key head for
# all, as many as queries, no soft cap, tied heads, parts of heads.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3 five to one": ("gemma3_text", dict(
        num_hidden_layers=8, layer_types=None, sliding_window=4,
        tie_word_embeddings=True, final_logit_softcapping=6.0,
        num_key_value_heads=4)),
    "gemma2 as it alternates": ("gemma2", dict(
        num_hidden_layers=5, layer_types=None, tie_word_embeddings=True,
        attn_logit_softcapping=None,
        num_key_value_heads=1)),
    "gemma2 with biases": ("gemma2", dict(
        attention_bias=True, final_logit_softcapping=None)),
    "gemma tied": ("gemma", dict(
        tie_word_embeddings=True, num_key_value_heads=4, head_dim=16)),
    "mistral without a window": ("mistral", dict(
        sliding_window=None, head_dim=6)),
    "qwen2 on all layers": ("qwen2", dict(max_window_layers=0)),
    "qwen3 with biases": ("qwen3", dict(
        attention_bias=True, use_sliding_window=True, sliding_window=5,
        max_window_layers=2, tie_word_embeddings=True)),
    "phi3 whole heads": ("phi3", dict(
        rope_parameters=None, sliding_window=None, num_key_value_heads=1)),
    "phi3 longrope, part of a head": ("phi3_longrope", dict(
        max_position_embeddings=16, rope_parameters={
            "rope_type": "longrope", "rope_theta": 200.0,
            "partial_rotary_factor": 0.75, "factor": 16.0,
            "short_factor": [1.0, 1.5, 2.0], "long_factor": [1.0, 4.0, 9.0]
        })),
    "qwen2 yarn with mscale": ("qwen2_yarn", dict(rope_parameters={
        "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0,
        "original_max_position_embeddings": 16, "mscale": 2.0,
        "mscale_all_dim": 0.5, "beta_fast": 4.0})),
    "qwen2 yarn untruncated": ("qwen2_yarn", dict(rope_parameters={
        "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0,
        "original_max_position_embeddings": 16, "truncate": False,
        "attention_factor": 1.5, "beta_fast": 4.0, "beta_slow": 0.5})),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("case", sorted(SHAPES))
def test_other_seeds_and_shapes(case: str, seed: int, tmp_path: Path) -> None:
  variant, changes = SHAPES[case]
  model = reference(variant, seed, **changes)
  ours, tokens, theirs = says_the_same(model, seed, tmp_path)
  again = tmp_path / "again"
  save_hf(ours.params, ours.spec.family, ours.config, again)
  np.testing.assert_array_equal(
      logits_of(transformers.AutoModelForCausalLM.from_pretrained(
          again, attn_implementation="eager"), tokens), theirs)


@pytest.mark.slow
def test_rows_of_several_lengths_cross_an_original_length(
    pair_of: Callable[[str], Pair]) -> None:
  """LongRoPE changes all keys of a row as it grows; each row for itself."""
  ours = pair_of("phi3_longrope").ours
  tokens = pair_of("phi3_longrope").tokens[:, :12]
  mask = np.ones_like(tokens)
  mask[0, :7] = 0
  got = ours.generate(tokens, mask, max_new_tokens=14, eos=())
  for row, start in ((0, 7), (1, 0)):
    alone = ours.generate(tokens[row:row + 1, start:], max_new_tokens=14,
                          eos=())
    np.testing.assert_array_equal(got[row:row + 1], alone)
  # A row that ends on the way stays ended.
  end = int(got[0, 2])
  ended = ours.generate(tokens, mask, max_new_tokens=14, eos=end)
  first = list(got[0]).index(end)
  assert (ended[0, first:] == end).all()
  np.testing.assert_array_equal(ended[0, :first], got[0, :first])


@pytest.mark.slow
def test_the_language_model_of_a_gemma3_with_a_tower(tmp_path: Path) -> None:
  text = {k: v for k, v in (BASE | VARIANTS["gemma3_text"][1]).items()
          if k != "attn_implementation"}
  config = transformers.Gemma3Config(
      text_config=text, mm_tokens_per_image=4, image_token_index=60,
      boi_token_index=58, eoi_token_index=59, vision_config=dict(
          hidden_size=16, intermediate_size=16, num_hidden_layers=1,
          num_attention_heads=2, image_size=16, patch_size=4))
  torch.manual_seed(0)
  model = transformers.Gemma3ForConditionalGeneration._from_config(
      config, attn_implementation="eager").eval()
  randomise(model)
  model.save_pretrained(tmp_path)
  tokens = np.random.default_rng(1).integers(0, 58, (2, LENGTH))
  theirs = logits_of(model, tokens)
  assert theirs.std() >= 1.0
  assert difference(load_decoder(tmp_path)(tokens), theirs) < 1e-4
  with pytest.raises(InputError, match="load its decoder"):
    read_spec(tmp_path)
