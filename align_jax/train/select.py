"""Which parameters a stage trains: globs over paths, layers included.

A pattern is matched against the whole path ("connector/*" is everything of
the connector; `*` crosses "/"). Layers of a stack share one array with the
layer in front, and a pattern may cut it: `tower/layers[-1]/*`,
`tower/layers[-4:]/*`. The cut becomes a trainable of its own, under the key
`tower/layers[11:12]/q_chk`; the stack stays whole among the frozen, and
`merge` writes the cut over it.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from align_jax.errors import InputError
from align_jax.registry import nearest

Flat = dict[str, Any]

_CUT = re.compile(r"\[(-?\d*)(:?)(-?\d*)\]")


def flatten(tree: Mapping[str, Any], above: str = "") -> Flat:
  """Nested parameters -> {path: array}, paths joined by "/"."""
  flat: Flat = {}
  for name, value in tree.items():
    path = f"{above}/{name}" if above else name
    if isinstance(value, Mapping):
      flat.update(flatten(value, path))
    else:
      flat[path] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """{path: array} -> nested parameters."""
  tree: dict[str, Any] = {}
  for path, value in flat.items():
    *above, name = path.split("/")
    node = tree
    for part in above:
      node = node.setdefault(part, {})
    node[name] = value
  return tree


def covers(pattern: str, path: str) -> bool:
  """Whether a pattern names the parameter, or some layers of it."""
  whole = _CUT.sub("", pattern) if "layers[" in pattern else pattern
  return fnmatch.fnmatchcase(path, whole)


def base(key: str) -> str:
  """The parameter that a trainable's key belongs to."""
  return _CUT.sub("", key)


def cut(key: str) -> slice | None:
  """The layers of a trainable's key; None where it is a whole parameter."""
  found = _CUT.search(key)
  return slice(int(found[1]), int(found[3])) if found else None


def trainables(shapes: Mapping[str, Any],
               rates: Mapping[str, float]) -> dict[str, float]:
  """The keys a stage trains, each with its peak learning rate.

  Args:
    shapes: {path: anything with a shape}, all parameters of the model.
    rates: pattern -> learning rate; where several name a parameter, the last
      one counts.

  Raises:
    InputError: patterns that name nothing (all of them, with the nearest
      path), layers out of range, or two different cuts of one parameter.
  """
  chosen: dict[str, tuple[slice | None, float]] = {}
  faults = []
  for pattern, rate in rates.items():
    found = [p for p in shapes if covers(pattern, p)]
    if not found:
      faults.append(f"{pattern!r} names no parameter"
                    f"{nearest(pattern, _globs(shapes))}")
    for path in found:
      try:
        layers = _layers(pattern, path, shapes[path].shape)
      except ValueError as error:
        faults.append(f"{pattern!r}: {error}")
        break
      held = chosen.get(path)
      if held and held[0] is not None and held[0] != layers:
        faults.append(f"{pattern!r} cuts {path!r} otherwise than an earlier "
                      "pattern")
        break
      chosen[path] = (layers, rate)
  if faults:
    raise InputError("trainable parameters:\n" +
                     "\n".join(f"  {f}" for f in faults))
  return {_key(path, layers): rate
          for path, (layers, rate) in sorted(chosen.items())}


def split(params: Mapping[str, Any],
          keys: Iterable[str]) -> tuple[Flat, Flat]:
  """Flat parameters, or their shapes, -> (trained, frozen).

  A cut stack is in both.
  """
  trained: Flat = {}
  frozen = dict(params)
  for key in keys:
    layers = cut(key)
    trained[key] = (frozen.pop(key) if layers is None
                    else _rows(params[base(key)], layers))
  return trained, frozen


def _rows(stack: Any, layers: slice) -> Any:
  if isinstance(stack, jax.ShapeDtypeStruct):
    return stack.update(
        shape=(layers.stop - layers.start, *stack.shape[1:]))
  # No rule shards the layer axis, so the cut lies as its stack does.
  return jax.jit(lambda x: x[layers], out_shardings=stack.sharding)(stack)


def merge(trained: Mapping[str, jax.Array],
          frozen: Mapping[str, jax.Array]) -> Flat:
  """(trained, frozen) -> flat parameters; undoes `split`."""
  params = dict(frozen)
  for key, value in trained.items():
    layers = cut(key)
    if layers is None:
      params[key] = value
    else:
      stack = params[base(key)]
      params[base(key)] = stack.at[layers].set(value.astype(stack.dtype))
  return params


def join(trained: Mapping[str, jax.Array],
         frozen: Mapping[str, jax.Array]) -> Flat:
  """`merge` outside jit: every array stays in the shards of its parameter."""
  params = dict(frozen)
  for key, value in trained.items():
    layers = cut(key)
    if layers is None:
      params[key] = value
    else:
      stack = params[base(key)]
      write = jax.jit(lambda x, v, at=layers: x.at[at].set(v.astype(x.dtype)),
                      out_shardings=stack.sharding)
      params[base(key)] = write(stack, value)
  return params


def _layers(pattern: str, path: str, shape: tuple[int, ...]) -> slice | None:
  """The layers that a pattern cuts out of one parameter; None means all."""
  found = _CUT.search(pattern) if "layers[" in pattern else None
  if found is None:
    return None
  if "layers" not in path.split("/")[:-1]:
    raise ValueError(f"{path!r} is not a stack of layers")
  count = shape[0]
  first, colon, last = found.groups()
  if not colon:
    if not first or not -count <= int(first) < count:
      raise ValueError(f"{path!r} has layers 0 to {count - 1}")
    start = int(first) % count
    layers = slice(start, start + 1)
  else:
    start, stop, _ = slice(int(first) if first else None,
                           int(last) if last else None).indices(count)
    if start >= stop:
      raise ValueError(f"an empty range of the {count} layers of {path!r}")
    layers = slice(start, stop)
  return None if (layers.start, layers.stop) == (0, count) else layers


def _key(path: str, layers: slice | None) -> str:
  if layers is None:
    return path
  return path.replace("layers/", f"layers[{layers.start}:{layers.stop}]/", 1)


def _globs(paths: Iterable[str]) -> list[str]:
  """Paths, and the globs "a/*", "a/b/*" above them: likely meanings."""
  globs: dict[str, None] = {}
  for path in paths:
    parts = path.split("/")
    for depth in range(1, len(parts)):
      globs["/".join(parts[:depth]) + "/*"] = None
    globs[path] = None
  return list(globs)
