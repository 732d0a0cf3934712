"""Transfers of weights and of activations, told apart by what is moved.

The least that a layout must move of its weights, a microbatch, counting what
one device takes in:

  forward       each matrix cut over fsdp is gathered once, in the dtype of
                the computation
  backward      once more where a gradient flows back through its layer; a
                table (V x D) is used by both passes and is gathered once
  gradient      each trained matrix is summed over fsdp once, likewise, and
                over replica and data, twice its shard
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from align_jax.parallel.rules import spec_for
from align_jax.plan.measure import Collective, Measured
from align_jax.train.select import base


@dataclasses.dataclass(frozen=True)
class Moved:
  """Bytes that one device takes in during a step.

  Attributes:
    weights: of parameters and their gradients.
    least: that the layout needs of them.
    vocabulary: transfers that should not be: an activation with an axis of
      the vocabulary's size, or a table inside a loop.
  """
  weights: float
  least: float
  vocabulary: tuple[Collective, ...]


def moved(measured: Measured, shapes: Mapping[str, Any],
          trained: Iterable[str], axes: Mapping[str, int], *,
          vocabulary: int, width: int, compute_bytes: int,
          accumulate: int, backward: Iterable[str]) -> Moved:
  """Sorts a program's transfers.

  Args:
    measured: the program.
    shapes: {path: shape} of all parameters.
    trained: keys of the trainables.
    axes: devices along each axis of the mesh.
    vocabulary: V.
    width: D.
    compute_bytes: of one number of the computation.
    accumulate: microbatches a step.
    backward: paths of parameters through whose layer a gradient flows.
  """
  kinds = _pieces(shapes, axes)
  weights = 0.0
  for c in measured.collectives:
    weights += sum(c.times * c.wire * share for shape, share in _shares(c)
                   if _is_weight(shape, kinds))
  wrong = tuple(c for c in measured.collectives
                if _of_vocabulary(c, axes, vocabulary, width, accumulate))
  return Moved(weights, _least(shapes, set(map(base, trained)), axes,
                               compute_bytes, accumulate, set(backward),
                               vocabulary), wrong)


def _shares(c: Collective) -> list[tuple[tuple[int, ...], float]]:
  """The arrays of a transfer, each with its share of the bytes."""
  whole = sum(s.bytes for s in c.shapes) or 1.0
  return [(s.dims, s.bytes / whole) for s in c.shapes]


def _pieces(shapes: Mapping[str, Any],
            axes: Mapping[str, int]) -> set[tuple[int, ...]]:
  """Sorted dims that a matrix, or a part of it on a device, may have."""
  kinds = set()
  for path, s in shapes.items():
    stacked = "layers" in path.split("/")[:-1]
    dims = s.shape[1:] if stacked else s.shape
    if len(dims) < 2:
      continue
    spec = tuple(spec_for(path, s.shape, axes))
    spec = (spec + (None,) * len(s.shape))[:len(s.shape)][stacked:]
    cuts = [axes.get(a, 1) if a else 1 for a in spec]
    fsdp = [n for n, a in zip(cuts, spec) if a == "fsdp"]
    for whole in ((), (True,)):
      part = [d // n if not (whole and n in fsdp) else d
              for d, n in zip(dims, cuts)]
      kinds.add(_flat(part))
      kinds.add(_flat([part[0], math.prod(part[1:])]))
      kinds.add(_flat([math.prod(part[:-1]), part[-1]]))
  return kinds


def _flat(dims: Iterable[int]) -> tuple[int, ...]:
  return tuple(sorted(d for d in dims if d != 1))


def _is_weight(dims: tuple[int, ...], kinds: set) -> bool:
  return _flat(dims) in kinds


def _of_vocabulary(c: Collective, axes: Mapping[str, int], vocabulary: int,
                   width: int, accumulate: int) -> bool:
  parts = {vocabulary, vocabulary // axes.get("tensor", 1)}
  loops = c.loops[1:] if accumulate > 1 and c.loops[:1] == (
      accumulate,) else c.loops
  for s in c.shapes:
    if len(_flat(s.dims)) < 2 or not parts & set(s.dims):
      continue
    others = s.size // next(d for d in s.dims if d in parts)
    table = others in {width, width // axes.get("fsdp", 1)}
    if (table and loops) or not table:
      return True
  return False


def _least(shapes: Mapping[str, Any], trained: set[str],
           axes: Mapping[str, int], compute_bytes: int, accumulate: int,
           backward: set[str], vocabulary: int) -> float:
  total = 0.0
  fsdp, others = axes.get("fsdp", 1), axes.get("replica", 1) * axes.get(
      "data", 1)
  for path, s in shapes.items():
    spec = tuple(spec_for(path, s.shape, axes))
    if len(s.shape) < 2:
      continue
    size = math.prod(s.shape) * compute_bytes / math.prod(
        axes.get(a, 1) for a in spec if a and a != "fsdp")
    cut = "fsdp" in spec
    if cut:
      uses = 1 if vocabulary in s.shape else 1 + (path in backward)
      total += uses * size * (fsdp - 1) / fsdp
    if path in trained:
      total += size * (fsdp - 1) / fsdp * (1 if cut else 2)
      if others > 1:
        total += 2 * size / (fsdp if cut else 1) * (others - 1) / others
  return total * accumulate
