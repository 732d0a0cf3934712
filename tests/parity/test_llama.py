"""The decoder against transformers' LlamaForCausalLM, f32, tiny and random."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # tiny models: threads only wait for each other

from safetensors.numpy import load_file  # noqa: E402

from align_jax.hub.faces import load_decoder  # noqa: E402
from align_jax.hub.pretrained import save_hf  # noqa: E402
from tests.parity.decoders_reference import (  # noqa: E402
  LENGTH,
  LLAMA3,
  changed,
  difference,
  logits_of,
  says_the_same,
  with_leaves,
)

BASE = dict(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
    num_attention_heads=4, max_position_embeddings=512, bos_token_id=None,
    eos_token_id=None, pad_token_id=None, attn_implementation="eager")
VARIANTS = {
    "mha_untied": dict(num_key_value_heads=4, tie_word_embeddings=False),
    "gqa_tied": dict(num_key_value_heads=2, tie_word_embeddings=True),
    "llama3_rope": dict(num_key_value_heads=1, tie_word_embeddings=True,
                        rope_parameters=LLAMA3),
    "head_width": dict(num_key_value_heads=2, tie_word_embeddings=False,
                       head_dim=12, rms_norm_eps=1e-2),
    "biases": dict(num_key_value_heads=2, tie_word_embeddings=True,
                   attention_bias=True, mlp_bias=True),
}


def reference(variant: str, seed: int = 0, **changes: Any) -> Any:
  """A random model whose logits are large and whose attention is peaked."""
  torch.manual_seed(seed)
  config = transformers.LlamaConfig(**BASE | VARIANTS[variant] | changes)
  model = transformers.LlamaForCausalLM(config).eval()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      if "norm" in name:
        weight.normal_(1.0, 0.3)
      elif name.endswith("bias"):
        weight.normal_(0.0, 0.5)
      elif "embed" in name or "lm_head" in name:
        weight.normal_(0.0, 0.5)
      else:
        gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
        weight.normal_(0.0, gain * weight.shape[1] ** -0.5)
  return model


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def pair(request: Any, tmp_path_factory: Any) -> Any:
  """(variant, the reference, ours, the folder between them, tokens)."""
  model = reference(request.param)
  folder = tmp_path_factory.mktemp(request.param)
  model.save_pretrained(folder)
  tokens = np.random.default_rng(1).integers(0, 61, (2, LENGTH))
  return request.param, model, load_decoder(folder), folder, tokens


def test_logits(pair: Any) -> None:
  _, model, ours, _, tokens = pair
  theirs = logits_of(model, tokens)
  assert theirs.std() >= 1.0
  assert difference(ours(tokens), theirs) < 1e-4


def test_attention_of_the_reference_is_not_uniform(pair: Any) -> None:
  _, model, _, _, tokens = pair
  with torch.no_grad():
    maps = model(torch.tensor(tokens), output_attentions=True).attentions
  last = torch.stack(maps)[..., -1, :].numpy()
  assert last.max(-1).mean() > 3 / LENGTH


def test_each_peculiarity_matters(pair: Any) -> None:
  """Switched off one at a time, parity is lost."""
  variant, model, ours, _, tokens = pair
  theirs = logits_of(model, tokens)
  c, p = ours.config, ours.params
  off = {"theta": changed(ours, rope_theta=c.rope_theta * 2),
         "eps": changed(ours, norm_eps=c.norm_eps + 0.1),
         "scale": changed(ours, with_leaves(p, q_dhk=lambda q: q * 1.1))}
  if c.rope_scaling:
    off["scaling"] = changed(ours, rope_scaling=None)
    for name in ("factor", "low_freq_factor", "high_freq_factor",
                 "original_max_positions"):
      value = getattr(c.rope_scaling, name)
      off[name] = changed(ours, rope_scaling=dataclasses.replace(
          c.rope_scaling, **{name: value * 2}))
  if 1 < c.kv_heads < c.heads:
    off["groups"] = changed(ours, with_leaves(
        p, k_dgk=lambda k: k[:, :, ::-1], v_dgk=lambda v: v[:, :, ::-1]))
  if not c.tied_head:
    off["untied"] = changed(ours, {**p, "head_vd": p["embed_vd"]})
  if c.qkv_bias:
    for name in ("q_bias_hk", "k_bias_gk", "v_bias_gk", "o_bias_d",
                 "gate_bias_f", "up_bias_f", "down_bias_d"):
      # A bias of the keys alone shifts all logits of a query alike but for
      # RoPE, which makes it matter.
      off[name] = changed(ours, with_leaves(p, **{name: jnp.zeros_like}))
  for name, model in off.items():
    assert difference(model(tokens), theirs) > 1e-2, (variant, name)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(pair: Any, side: str) -> None:
  _, model, ours, _, tokens = pair
  mask = np.ones_like(tokens)
  mask[0, slice(0, 9) if side == "left" else slice(-9, None)] = 0
  theirs = logits_of(model, tokens, mask)
  real = mask.astype(bool)
  assert difference(ours(tokens, mask)[real], theirs[real]) < 1e-4
  # What stands at padding changes nothing.
  other = np.where(real, tokens, 7)
  np.testing.assert_array_equal(ours(tokens, mask)[real],
                                ours(other, mask)[real])


def test_generation_token_for_token(pair: Any) -> None:
  _, model, ours, _, tokens = pair
  prompt, mask = tokens[:, :9], np.ones((2, 9), int)
  mask[0, :4] = 0
  with torch.no_grad():
    theirs = model.generate(
        torch.tensor(prompt), attention_mask=torch.tensor(mask),
        do_sample=False, max_new_tokens=20, pad_token_id=0)[:, 9:].numpy()
  mine = ours.generate(prompt, mask, max_new_tokens=20, eos=())
  np.testing.assert_array_equal(mine, theirs)
  # Right padding gives the same continuation.
  right = np.zeros_like(prompt)
  right[0, :5], right[1] = prompt[0, 4:], prompt[1]
  np.testing.assert_array_equal(
      ours.generate(right, mask * 0 + [[1] * 5 + [0] * 4, [1] * 9],
                    max_new_tokens=20, eos=()), theirs)
  # A row ends at its first end token, which is then repeated.
  end = int(theirs[0, 3])
  ended = ours.generate(prompt, mask, max_new_tokens=20, eos=end)
  first = list(theirs[0]).index(end)
  assert (ended[0, first:] == end).all()
  np.testing.assert_array_equal(ended[0, :first], theirs[0, :first])
  assert ended.shape[1] == max(
      (list(row).index(end) + 1 if end in row else 20) for row in theirs)


def test_there_and_back_byte_for_byte(pair: Any, tmp_path: Path) -> None:
  """torch -> ours -> safetensors -> torch."""
  _, model, ours, folder, tokens = pair
  save_hf(ours.params, "llama", ours.config, tmp_path)
  before = load_file(folder / "model.safetensors")
  after = load_file(tmp_path / "model.safetensors")
  assert before.keys() == after.keys()
  for key, value in before.items():
    assert value.tobytes() == after[key].tobytes(), key
    assert value.shape == after[key].shape
  back, report = transformers.LlamaForCausalLM.from_pretrained(
      tmp_path, output_loading_info=True, attn_implementation="eager")
  assert not report["missing_keys"] and not report["unexpected_keys"]
  for key, value in model.state_dict().items():
    assert torch.equal(value, back.state_dict()[key]), key
  np.testing.assert_array_equal(logits_of(back, tokens),
                                logits_of(model, tokens))


def test_config_survives_both_ways(pair: Any, tmp_path: Path) -> None:
  _, _, ours, _, _ = pair
  save_hf(ours.params, "llama", ours.config, tmp_path)
  again = load_decoder(tmp_path)
  assert again.config == ours.config
  jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("variant, changes", [
    *((variant, {}) for variant in sorted(VARIANTS)),
    ("mha_untied", dict(hidden_size=48, num_attention_heads=6,
                        num_key_value_heads=3, num_hidden_layers=1)),
    ("llama3_rope", dict(hidden_size=24, num_attention_heads=3,
                         num_key_value_heads=3, num_hidden_layers=5))])
def test_other_seeds_and_shapes(variant: str, changes: dict[str, Any],
                                seed: int, tmp_path: Path) -> None:
  says_the_same(reference(variant, seed, **changes), seed, tmp_path)
