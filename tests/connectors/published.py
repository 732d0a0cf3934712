"""Published weights, in memory, put into a connector of ours."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.connectors import CONNECTORS
from align_jax.connectors.protocol import Context
from align_jax.hub.fill import load_flat
from align_jax.hub.keymaps import Family, Rules
from align_jax.hub.match import canonical_keys
from align_jax.train.select import flatten, unflatten


@dataclasses.dataclass
class Memory:
  """A checkpoint that is a dict."""
  tensors: Mapping[str, np.ndarray]

  def keys(self) -> Any:
    return self.tensors.keys()

  def shape(self, key: str) -> tuple[int, ...]:
    return self.tensors[key].shape

  def dtype(self, key: str) -> Any:
    return self.tensors[key].dtype

  def read(self, key: str, index: Any) -> np.ndarray:
    return self.tensors[key][index]

  def origin(self, key: str) -> str:
    return f"memory:{key}"


def context(segments: np.ndarray, width: int, vocabulary: int = 5,
            **extras: Any) -> Context:
  """For images of these samples i32[B,N]."""
  rng = np.random.default_rng(3)
  table = rng.normal(size=(vocabulary, width)).astype("f")
  return Context(jnp.asarray(table), jnp.asarray(segments),
                 {k: jnp.asarray(v) for k, v in extras.items()})


def make(name: str, dim_out: int, **options: Any) -> Any:
  return CONNECTORS.get(name)(dim_out=dim_out, vocab_size=5, **options)


def shapes_of(module: Any, features: np.ndarray, ctx: Context) -> Any:
  """Flat {path: shape and dtype} of a connector's parameters."""
  tree = jax.eval_shape(module.init, jax.random.key(0), features,
                        ctx.image_segment_ids > 0, ctx)["params"]
  return {path: jax.ShapeDtypeStruct(leaf.shape, np.float32)
          for path, leaf in flatten(tree).items()}


def load(shapes: Mapping[str, Any], rules: Rules,
         tensors: Mapping[str, np.ndarray], **family: Any) -> Any:
  """Nested parameters; strict in both directions."""
  known = Family("", rules, dict, dict, **family)
  memory = Memory({k: np.asarray(v, np.float32) for k, v in tensors.items()})
  names = canonical_keys(memory.keys(), known)
  return unflatten(load_flat(memory, names, known, shapes, "memory")[0])


def apply(module: Any, params: Any, features: np.ndarray,
          ctx: Context) -> Any:
  """One compilation, where `apply` alone would compile op by op."""
  return jax.jit(lambda params, features, ctx: module.apply(
      {"params": params}, features, ctx.image_segment_ids > 0, ctx))(
          params, jnp.asarray(features), ctx)


def random_tensors(shapes: Mapping[str, tuple[int, ...]],
                   seed: int = 0) -> dict[str, np.ndarray]:
  """Values with which every part matters: see tests/parity."""
  rng = np.random.default_rng(seed)
  out = {}
  for name, shape in shapes.items():
    x = rng.normal(size=shape)
    if "norm" in name or ".bn." in name:
      x = x * 0.3 + (1.0 if name.endswith("weight") else 0.0)
    elif name.endswith("bias"):
      x = x * 0.5
    elif len(shape) > 1 and name.endswith("weight"):
      x = x * np.prod(shape[1:]) ** -0.5
    out[name] = x.astype(np.float32)
  return out
