"""LoRA (arXiv 2106.09685): a trained product of two thin matrices beside each
frozen weight of the decoder.

  y = x W + (alpha / rank) (x A) B,   A drawn as W is, B zero at the start

The adapters of `q_dhk` f[D,H,K] are `q_lora_dr` f[D,R] and `q_lora_rhk`
f[R,H,K], beside it in the tree, so that `decoder/layers/*_lora_*` names them
all in a stage's `train`, and the letters say how they are sharded.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Of each weight that may have adapters: how many of its axes are inputs.
TARGETS: dict[str, int] = {
    "q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}
_MARK = "_lora_"


@dataclasses.dataclass(frozen=True)
class Lora:
  """Adapters of a decoder.

  Attributes:
    rank: R.
    alpha: of the scale alpha / rank.
    targets: of `TARGETS`.
  """
  rank: int
  alpha: float
  targets: tuple[str, ...]

  @property
  def scale(self) -> float:
    return self.alpha / self.rank

  def covers(self, name: str) -> bool:
    """Whether a weight, such as "q_dhk", has adapters."""
    return name.partition("_")[0] in self.targets


def adapters_of(name: str) -> tuple[str, str]:
  """The names of a weight's two adapters.

  >>> adapters_of("o_hkd")
  ('o_lora_hkr', 'o_lora_rd')
  """
  stem, letters = name.split("_")
  inputs = TARGETS[stem]
  return (f"{stem}{_MARK}{letters[:inputs]}r",
          f"{stem}{_MARK}r{letters[inputs:]}")


def is_adapter(path: str) -> bool:
  """Whether a parameter's path is of an adapter."""
  return _MARK in path.rsplit("/", 1)[-1]


def adapted(module: nn.Module, lora: Lora, equation: str, x: jax.Array,
            name: str, shape: tuple[int, ...]) -> jax.Array:
  """(alpha / rank) (x A) B; A and B are parameters of `module`.

  Args:
    module: the layer, with `dtype`.
    lora: of the decoder.
    equation: of x with the weight, "bld,dhk->blhk".
    x: the input.
    name: of the weight.
    shape: of the weight.
  """
  given, out = equation.split("->")
  given, letters = given.split(",")
  inputs = TARGETS[name.split("_")[0]]
  rest = "".join(a for a in given if a not in letters[:inputs])
  first, second = adapters_of(name)
  draw = nn.initializers.variance_scaling(
      1.0, "fan_in", "normal", in_axis=tuple(range(inputs)), out_axis=-1)
  a = module.param(first, draw, (*shape[:inputs], lora.rank))
  b = module.param(second, nn.initializers.zeros,
                   (lora.rank, *shape[inputs:]))
  thin = jnp.einsum(f"{given},{letters[:inputs]}r->{rest}r", x,
                    a.astype(module.dtype))
  return lora.scale * jnp.einsum(f"{rest}r,r{letters[inputs:]}->{out}", thin,
                                 b.astype(module.dtype))


def merged(params: Mapping[str, Any], lora: Lora | None) -> dict[str, Any]:
  """Flat parameters of a decoder without adapters, which are added in.

  Args:
    params: {path: array}; weights under `layers/` lead with an axis of
      layers.
    lora: of the decoder; None gives the parameters as they are.

  Returns:
    {path: array}: a decoder without adapters that computes the same. The sum
    is made in f32; each weight keeps its dtype.
  """
  kept = {p: x for p, x in params.items() if not is_adapter(p)}
  if lora is None:
    return kept
  for path, weight in kept.items():
    above, _, name = path.rpartition("/")
    stem = name.split("_")[0]
    if stem not in lora.targets or name.count("_") != 1:
      continue
    a, b = (params[f"{above}/{n}"] for n in adapters_of(name))
    layers, rank = a.shape[0], a.shape[-1]
    added = jnp.einsum(
        "lir,lro->lio", a.reshape(layers, -1, rank).astype(jnp.float32),
        b.reshape(layers, rank, -1).astype(jnp.float32))
    kept[path] = (weight.astype(jnp.float32) + lora.scale * added.reshape(
        weight.shape)).astype(weight.dtype)
  return kept
