"""Where parameters live: path pattern -> axes of the mesh.

Names carry their axes as a last `_letters` (`embed_vd`, `q_dhk`), so one
letter table serves every module. A stacked parameter (under `layers/`) has
the layer axis in front, which is not sharded.

  letter                      laid over
  v  vocabulary               tensor
  h g f  heads, KV heads, MLP tensor
  d c e  a width              fsdp    (the first of them; one is enough)
  any other                   nothing

A vector is replicated: it is small, and every device needs it.
"""

import math
import re
from collections.abc import Iterable, Mapping

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

LETTERS: dict[str, str] = {
    "v": "tensor", "h": "tensor", "g": "tensor", "f": "tensor",
    "d": "fsdp", "c": "fsdp", "e": "fsdp",
}

_LETTERS = re.compile(r"_([a-z]+)$")


def spec_for(path: str, shape: tuple[int, ...],
             axes: Mapping[str, int]) -> P:
  """The PartitionSpec of one parameter.

  Args:
    path: such as "decoder/layers/q_dhk".
    shape: of the parameter, stacked axis included.
    axes: devices along each mesh axis; an array axis that they do not divide
      stays whole.
  """
  parts = path.split("/")
  stacked = "layers" in parts[:-1]
  match = _LETTERS.search(parts[-1])
  letters = match.group(1) if match else ""
  if stacked and len(letters) == len(shape) - 1:
    letters = "." + letters
  if len(letters) != len(shape) or len(shape) - stacked < 2:
    return P()
  spec, used = [], set()
  for letter, size in zip(letters, shape):
    axis = LETTERS.get(letter)
    fits = axis and axis not in used and size % axes.get(axis, 1) == 0
    spec.append(axis if fits else None)
    used.add(axis if fits else None)
  while spec and spec[-1] is None:
    spec.pop()
  return P(*spec)


def shardings(shapes: Mapping[str, jax.ShapeDtypeStruct],
              mesh: Mesh) -> dict[str, NamedSharding]:
  """A sharding for every parameter of a flat {path: shape} tree."""
  axes = dict(mesh.shape)
  return {path: NamedSharding(mesh, spec_for(path, leaf.shape, axes))
          for path, leaf in shapes.items()}


def unsharded_share(shapes: Mapping[str, jax.ShapeDtypeStruct],
                    mesh: Mesh) -> float:
  """Share of all parameters that every device of fsdp x tensor holds whole."""
  axes = dict(mesh.shape)
  if axes["fsdp"] * axes["tensor"] == 1:
    return 0.0
  total = sum(math.prod(s.shape) for s in shapes.values())
  whole = sum(math.prod(s.shape) for p, s in shapes.items()
              if not any(spec_for(p, s.shape, axes)))
  return whole / max(total, 1)


def table(shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh) -> str:
  """The partition table, one line a parameter, as printed at start-up."""
  axes = dict(mesh.shape)
  rows: Iterable[tuple[str, str, str, str]] = [
      (path, "x".join(map(str, s.shape)) or "scalar", str(s.dtype),
       str(tuple(spec_for(path, s.shape, axes))))
      for path, s in shapes.items()]
  widths = [max((len(r[i]) for r in rows), default=0) for i in range(4)]
  lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip()
           for row in rows]
  share = unsharded_share(shapes, mesh)
  lines.append(f"mesh {axes}; {share:.1%} of the parameters unsharded")
  return "\n".join(lines)


def check_sharded(shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh,
                  limit: float = 0.02) -> None:
  """Refuses a layout that leaves too much on every device.

  Raises:
    ValueError: more than `limit` of the parameters is unsharded; the message
      names the largest.
  """
  share = unsharded_share(shapes, mesh)
  if share <= limit:
    return
  axes = dict(mesh.shape)
  whole = sorted(
      ((math.prod(s.shape), p) for p, s in shapes.items()
       if not any(spec_for(p, s.shape, axes))), reverse=True)
  named = ", ".join(f"{p} ({n:,})" for n, p in whole[:5])
  raise ValueError(
      f"{share:.1%} of the parameters lie whole on every device (limit "
      f"{limit:.0%}) with mesh {axes}; largest: {named}")
