"""The engine between a foreign checkpoint and a tree of parameters.

Reading asks the file for the slices that each device owns, and for nothing
else; stacked layers are filled layer by layer. It is strict: what is missing,
unexpected or of another shape is listed in one error.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.errors import InputError
from align_jax.hub.keymaps import Family
from align_jax.hub.transform import Transform
from align_jax.registry import nearest


class Reader(Protocol):
  """An open checkpoint, whatever its format."""

  def keys(self) -> Iterable[str]: ...
  def shape(self, key: str) -> tuple[int, ...]: ...
  def dtype(self, key: str) -> np.dtype | None: ...
  def read(self, key: str, index: tuple[slice, ...]) -> np.ndarray: ...
  def origin(self, key: str) -> str: ...


def canonical_keys(keys: Iterable[str], family: Family) -> dict[str, str]:
  """A family's own keys -> those in the file, over its versions."""
  found: dict[str, str] = {}
  for key in keys:
    name = key
    for pattern, replacement in family.rename:
      name = re.sub(pattern, replacement, name)
    found[name] = key
  for part in family.parts.values():
    if part.prefix:
      inside = {n.removeprefix(part.prefix): key for n, key in found.items()
                if n.startswith(part.prefix)}
      found = {n: k for n, k in found.items() if k not in inside.values()}
      found |= {part.prefix + n: inside[k]
                for n, k in canonical_keys(inside, part.family).items()}
  return found


def part_keys(keys: Iterable[str], family: Family, part: str) -> dict[str, str]:
  """The keys of a part, as its own family calls them -> those in the file."""
  found = canonical_keys(keys, family)
  if not part or part not in family.parts:
    return found
  prefix = family.parts[part].prefix
  inside = {n.removeprefix(prefix): key for n, key in found.items()
            if n.startswith(prefix)}
  if not prefix:
    inner = canonical_keys(inside, family.parts[part].family)
    inside = {n: inside[k] for n, k in inner.items()}
  return inside


def _expand(key: str, layers: int) -> list[str]:
  if "{n}" not in key:
    return [key]
  return [key.replace("{n}", str(n)) for n in range(layers)]


class _Place(NamedTuple):
  """Where a parameter lies: in which tensor, of what shape, from where on."""
  key: str
  transform: Transform
  shape: tuple[int, ...]
  origin: tuple[int, ...]


def _places(family: Family, shapes: Mapping[str, Any]) -> dict[str, _Place]:
  """The place of every parameter that the family has a rule for.

  Raises:
    ValueError: a table whose pieces of a tensor leave a gap or overlap.
  """
  found = {}
  sharing: dict[str, list[str]] = {}
  for path, leaf in shapes.items():
    if path in family.rules:
      key, text = family.rules[path]
      transform = Transform(text)
      inner = tuple(leaf.shape[1:] if "{n}" in key else leaf.shape)
      shape = transform.foreign_shape(inner)
      found[path] = _Place(key, transform, shape, (0,) * len(shape))
      if transform.piece:
        sharing.setdefault(key, []).append(path)
  for key, paths in sharing.items():
    axis = found[paths[0]].transform.piece[0]
    whole = sum(found[p].shape[axis] for p in paths)
    taken = []
    for path in paths:
      _, transform, shape, _ = found[path]
      inner = shapes[path].shape["{n}" in key:]
      start = transform.start(inner, whole)
      taken.append((start, start + shape[axis]))
      before, after = shape[:axis], shape[axis + 1:]
      found[path] = _Place(
          key, transform, (*before, whole, *after),
          (*[0] * len(before), start, *[0] * len(after)))
    taken.sort()
    if [0, *(b for _, b in taken)] != [*(a for a, _ in taken), whole]:
      raise ValueError(f"the pieces of {key!r} do not fill it: {taken}")
  return found


def load_flat(
    reader: Reader,
    names: Mapping[str, str],
    family: Family,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    source: str,
) -> tuple[dict[str, jax.Array], dict[str, str]]:
  """Parameters straight into their shards.

  Args:
    reader: the open checkpoint.
    names: the family's keys -> the file's.
    family: whose rules apply.
    shapes: path -> shape, dtype and sharding (None: the default device).
    source: what to call the checkpoint in errors.

  Returns:
    ({path: array}, {path: "file:key", of several files joined by "; "}).

  Raises:
    InputError: missing, unexpected or mis-shaped tensors, all of them.
  """
  places = _check(reader, names, family, shapes, source)
  loaded, provenance = {}, {}
  for path, leaf in shapes.items():
    key, transform, _, origin = places[path]
    stacked = "{n}" in key
    files = [names[k] for k in _expand(key, leaf.shape[0] if stacked else 0)]
    done: dict[Any, np.ndarray] = {}

    def part(index: tuple[slice, ...], *, leaf=leaf, files=files,
             transform=transform, origin=origin, stacked=stacked,
             done=done) -> np.ndarray:
      """What one device owns; equal parts are read once."""
      def fetch(n: int, cut: tuple[slice, ...]) -> np.ndarray:
        return reader.read(files[n], tuple(
            slice(c.start + o, c.stop + o) for c, o in zip(cut, origin)))

      cuts = tuple(slice(*cut.indices(size)[:2])
                   for cut, size in zip(index, leaf.shape))
      tag = tuple((cut.start, cut.stop) for cut in cuts)
      if tag not in done:
        inner = leaf.shape[1:] if stacked else leaf.shape
        which = range(*tag[0]) if stacked else (0,)
        out = np.empty([len(which), *(b - a for a, b in tag[stacked:])],
                       leaf.dtype)
        for i, n in enumerate(which):
          out[i, ...] = transform.read(
              functools.partial(fetch, n), inner, cuts[stacked:])
        done[tag] = out if stacked else out[0]
      return done[tag]

    if leaf.sharding is None:
      loaded[path] = jnp.asarray(part((slice(None),) * len(leaf.shape)))
    else:
      loaded[path] = jax.make_array_from_callback(
          leaf.shape, leaf.sharding, part)
    provenance[path] = _origin(reader, files)
  return loaded, provenance


def _origin(reader: Reader, keys: list[str]) -> str:
  """Every file and what it gives: "F:a.{0..1}.b; G:a.{2..3}.b"."""
  files: dict[str, list[int]] = {}
  for n, key in enumerate(keys):
    files.setdefault(reader.origin(key).removesuffix(key), []).append(n)
  return "; ".join(file + _numbered(keys, which)
                   for file, which in files.items())


def _numbered(keys: list[str], which: list[int]) -> str:
  """["a.0.b", "a.1.b"] -> "a.{0..1}.b", the file's own spelling."""
  if len(which) == 1:
    return keys[which[0]]
  first, last = which[0], which[-1]
  numbers = (f"{first}..{last}" if len(which) == last - first + 1
             else ",".join(map(str, which)))
  return re.sub(r"(?<![0-9])0(?![0-9])", f"{{{numbers}}}", keys[0], count=1)


def _check(reader: Reader, names: Mapping[str, str], family: Family,
           shapes: Mapping[str, jax.ShapeDtypeStruct], source: str
           ) -> dict[str, _Place]:
  """Raises one InputError that lists all that does not match."""
  faults, claimed = [], set()
  ignored = re.compile("|".join(f"(?:{p})" for p in family.ignored) or "(?!)")
  wanted: list[tuple[str, str, tuple[int, ...]]] = []
  places = _places(family, shapes)
  for path, leaf in shapes.items():
    if path not in places:
      faults.append(f"no rule for our {path!r}{nearest(path, family.rules)}")
      continue
    key, _, shape, _ = places[path]
    for name in _expand(key, leaf.shape[0] if "{n}" in key else 0):
      wanted.append((path, name, shape))
      claimed.add(name)
  spare = sorted(n for n in names if n not in claimed)
  unexpected = [n for n in spare if not ignored.search(n)]
  for path, name, shape in wanted:
    if name not in names:
      faults.append(f"missing {name!r} (our {path}){nearest(name, spare)}")
      continue
    found = reader.shape(names[name])
    if found != shape:
      faults.append(f"{names[name]!r} has shape {list(found)}, our {path} "
                    f"needs {list(shape)}")
    if reader.dtype(names[name]) is None:
      faults.append(f"{names[name]!r} has a dtype that is not read")
  faults += [f"unexpected {names[n]!r}" for n in unexpected]
  if faults:
    shown = faults[:40] + ([f"... and {len(faults) - 40} more"]
                           if len(faults) > 40 else [])
    raise InputError(f"{source} does not fit the model:\n  "
                     + "\n  ".join(shown))
  return places


def foreign_tensors(
    family: Family, params: Mapping[str, Any]
) -> list[tuple[str, tuple[int, ...], np.dtype, Any]]:
  """What `write_safetensors` takes, from a flat {path: array}.

  Raises:
    InputError: parameters that the family has no rule for.
  """
  lost = [f"{p}{nearest(p, family.rules)}" for p in params
          if p not in family.rules]
  if lost:
    raise InputError("this layout has no place for: " + ", ".join(lost))
  places = _places(family, params)
  sharing: dict[str, list[str]] = {}
  for path, place in places.items():
    sharing.setdefault(place.key, []).append(path)
  tensors = []
  for key, paths in sharing.items():
    values = [params[p] for p in paths]
    stacked = "{n}" in key
    dtype = functools.reduce(jnp.promote_types, (v.dtype for v in values))
    for n, name in enumerate(_expand(key, values[0].shape[0] if stacked
                                     else 0)):
      def make(n=n, stacked=stacked, paths=paths, dtype=dtype) -> np.ndarray:
        parts = [
            places[p].transform.write(np.asarray(
                params[p][n] if stacked else params[p])) for p in paths]
        if len(parts) == 1:
          return parts[0]
        whole = np.empty(places[paths[0]].shape, dtype)
        for path, part in zip(paths, parts):
          whole[tuple(slice(o, o + size) for o, size in zip(
              places[path].origin, part.shape))] = part
        return whole
      tensors.append((name, places[paths[0]].shape, dtype, make))
  return tensors
