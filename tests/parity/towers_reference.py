"""Reference towers of transformers + torch, and how they are compared."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from align_jax.hub.pretrained import load_params, read_spec

# Vectors that are added to the stream, at the scale of what is there.
_EMBEDDINGS = ("position_embedding", "token_embedding", "class_embedding",
               "cls_token", "register_tokens", "mask_token", "probe")
# Queries, keys and values in one tensor.
_FUSED = ("qkv.weight", "in_proj_weight")


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
  """Weights with which every part matters.

  Matrices keep the scale of what they multiply, those of queries and keys
  four times that, so that attention is far from uniform; biases, norms and
  embeddings are far from their neutral values.
  """
  rng = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, value in model.named_parameters():
      if name == "logit_scale":
        value.fill_(3.5)
        continue
      noise = torch.randn(value.shape, generator=rng)
      if "norm" in name and name.endswith("weight"):
        noise = 1 + 0.3 * noise
      elif any(part in name for part in _EMBEDDINGS):
        pass
      elif value.ndim > 1:
        noise *= value[0].numel() ** -0.5
        noise *= 2 if "q_proj" in name or "k_proj" in name else 1
        if name.endswith(_FUSED):
          noise[:len(noise) * 2 // 3] *= 2
      else:
        noise *= 0.5
      value.copy_(noise)


def sharpness(attentions: tuple[torch.Tensor, ...]) -> float:
  """1 - entropy / log(keys), averaged: 0 for uniform attention, 1 for hard."""
  shares = []
  for probs in attentions:
    entropy = -(probs * probs.clamp_min(1e-30).log()).sum(-1).mean()
    shares.append(1 - float(entropy) / np.log(probs.shape[-1]))
  return float(np.mean(shares))


def difference(ours: Any, theirs: torch.Tensor) -> float:
  """max |difference| / max(1, std of the reference)."""
  want = theirs.detach().numpy()
  return float(np.abs(np.asarray(ours) - want).max() / max(1.0, want.std()))


def load(module: Any, folder: Path, *inputs: Any, part: str = "") -> Any:
  """The parameters of a module of ours out of a folder of theirs."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  return load_params(read_spec(folder, part), shapes)[0]


def run(module: Any, params: Any, *inputs: Any, **options: Any) -> Any:
  """One compilation, where `apply` alone would compile op by op."""
  return jax.jit(lambda params, inputs: module.apply(
      {"params": params}, *inputs, **options))(params, inputs)


def pixels_for(side: int, images: int = 3, seed: int = 0
               ) -> tuple[jax.Array, torch.Tensor]:
  """The same random pixels, for us [I,H,W,3] and for them [I,3,H,W]."""
  x = np.random.default_rng(seed).normal(
      size=(images, side, side, 3)).astype(np.float32)
  return jnp.asarray(x), torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
