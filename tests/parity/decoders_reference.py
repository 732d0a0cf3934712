"""Tiny random decoders of transformers, one a family, and how to ask them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from align_jax.hub.faces import LoadedDecoder, load_decoder

torch.set_num_threads(1)  # tiny models: threads only wait for each other

V, LENGTH = 61, 40

BASE = dict(
    vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
    bos_token_id=None, eos_token_id=None, pad_token_id=None,
    attn_implementation="eager")
LLAMA3 = {"rope_type": "llama3", "rope_theta": 200.0, "factor": 8.0,
          "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
WINDOWS = dict(sliding_window=6,
               layer_types=["sliding_attention", "full_attention",
                            "sliding_attention"])

# Variant -> (transformers' configuration class, its fields). Windows and
# original lengths are well below LENGTH.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_linear": ("Llama", dict(rope_parameters={
        "rope_type": "linear", "rope_theta": 500.0, "factor": 4.0})),
    "mistral": ("Mistral", dict(sliding_window=7)),
    "qwen2": ("Qwen2", dict(use_sliding_window=True, sliding_window=6,
                            max_window_layers=1)),
    "qwen2_yarn": ("Qwen2", dict(
        sliding_window=6, tie_word_embeddings=True, rope_parameters={
            "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0,
            "original_max_position_embeddings": 16, "beta_fast": 2.0})),
    "qwen3": ("Qwen3", dict(head_dim=12)),
    # Untied, so that a token is not its own likeliest successor.
    "gemma": ("Gemma", dict(head_dim=12, num_key_value_heads=1,
                            tie_word_embeddings=False)),
    "gemma2": ("Gemma2", dict(
        head_dim=12, query_pre_attn_scalar=10, tie_word_embeddings=False,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=5.0, **WINDOWS)),
    "gemma3_text": ("Gemma3Text", dict(
        head_dim=12, query_pre_attn_scalar=10, tie_word_embeddings=False,
        **WINDOWS, rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 2000.0,
                               "factor": 8.0},
            "sliding_attention": {"rope_type": "default",
                                  "rope_theta": 50.0}})),
    "phi3": ("Phi3", dict(sliding_window=7, rope_parameters={
        "rope_type": "default", "rope_theta": 200.0,
        "partial_rotary_factor": 0.5})),
    "phi3_longrope": ("Phi3", dict(
        original_max_position_embeddings=16, rope_parameters={
            "rope_type": "longrope", "rope_theta": 200.0,
            "short_factor": [1.0, 1.1, 1.5, 2.0],
            "long_factor": [1.2, 2.0, 4.0, 9.0]})),
}


def reference(variant: str, seed: int = 0, **changes: Any) -> Any:
  """A random model whose logits are large and whose attention is peaked."""
  torch.manual_seed(seed)
  kind, fields = VARIANTS[variant]
  config = getattr(transformers, f"{kind}Config")(
      **BASE | fields | changes)
  model = transformers.AutoModelForCausalLM.from_config(
      config, attn_implementation="eager").eval()
  randomise(model)
  return model


def randomise(model: Any) -> None:
  """Draws all weights of a model anew, of its own dtype and shape."""
  gemma = type(model.config).__name__.startswith("Gemma")
  # A tied head that is large makes each token its own successor.
  words = (0.15 if gemma else 0.25) if model.config.tie_word_embeddings else (
      0.5)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      if "norm" in name:
        final = "layers" not in name
        weight.normal_(float(final) if gemma else 1.0, 0.3)
      elif name.endswith("bias"):
        weight.normal_(0.0, 0.5)
      elif "embed" in name or "lm_head" in name:
        weight.normal_(0.0, words)
      else:
        gain = 2.0 if any(x in name for x in ("q_proj", "k_proj", "qkv_proj")
                          ) else 1.0
        weight.normal_(0.0, gain * weight.shape[-1] ** -0.5)


def logits_of(model: Any, tokens: np.ndarray, mask: Any = None) -> np.ndarray:
  with torch.no_grad():
    return model(torch.tensor(tokens), attention_mask=(
        None if mask is None else torch.tensor(mask))).logits.numpy()


def attention_of(model: Any, tokens: np.ndarray) -> np.ndarray:
  """f[layers,B,H,L]: what the last token attends to."""
  with torch.no_grad():
    maps = model(torch.tensor(tokens), output_attentions=True).attentions
  return torch.stack(maps)[..., -1, :].numpy()


def greedy(model: Any, tokens: np.ndarray, mask: np.ndarray, count: int
           ) -> np.ndarray:
  """The `count` tokens that follow, by transformers' own generation."""
  with torch.no_grad():
    return model.generate(
        torch.tensor(tokens), attention_mask=torch.tensor(mask),
        do_sample=False, max_new_tokens=count,
        pad_token_id=0)[:, tokens.shape[1]:].numpy()


def difference(ours: Any, theirs: np.ndarray) -> float:
  return float(np.abs(np.asarray(ours) - theirs).max()
               / max(1.0, theirs.std()))


def says_the_same(model: Any, seed: int, folder: Path
                  ) -> tuple[LoadedDecoder, np.ndarray, np.ndarray]:
  """Saves a model and reads it here: its logits, and greedily its tokens.

  Returns:
    (ours, the tokens that both read, their logits).
  """
  model.save_pretrained(folder)
  tokens = np.random.default_rng(seed).integers(
      0, model.config.vocab_size, (3, 29))
  theirs = logits_of(model, tokens)
  assert theirs.std() >= 1.0
  ours = load_decoder(folder)
  assert difference(ours(tokens), theirs) < 1e-4
  np.testing.assert_array_equal(
      ours.generate(tokens[:, :5], max_new_tokens=16, eos=()),
      greedy(model, tokens[:, :5], np.ones((3, 5), int), 16))
  return ours, tokens, theirs


def changed(ours: LoadedDecoder, params: Any = None, **config: Any
            ) -> LoadedDecoder:
  """The same decoder with other parameters, or otherwise configured."""
  config = dataclasses.replace(ours.config, **config)
  return LoadedDecoder(ours.spec, config.make(), params or ours.params)


def with_leaves(params: Any, **leaves: Any) -> Any:
  """The parameters with some of the layers' changed by functions."""
  layers = dict(params["layers"])
  layers |= {name: change(layers[name]) for name, change in leaves.items()}
  return {**params, "layers": layers}
