"""Which foreign tensor is which parameter, and what does not fit.

Strict: every parameter needs its tensor, of its shape; every tensor needs a
parameter. What does not fit is listed whole, layers folded into one line:

  missing 'model.layers.{0..31}.mlp.up_proj.weight' (our layers/up_df)
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from align_jax.errors import InputError
from align_jax.hub.keymaps import Family
from align_jax.hub.reader import Reader
from align_jax.hub.transform import Transform
from align_jax.registry import nearest

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


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
  """The keys of a part, as its own family calls them -> those in the file.

  A part without a prefix has what no other part's prefix claims.
  """
  found = canonical_keys(keys, family)
  if not part or part not in family.parts:
    return found
  prefix = family.parts[part].prefix
  if prefix:
    return {n.removeprefix(prefix): key for n, key in found.items()
            if n.startswith(prefix)}
  others = tuple(p.prefix for p in family.parts.values() if p.prefix)
  inside = {n: key for n, key in found.items() if not n.startswith(others)}
  inner = canonical_keys(inside, family.parts[part].family)
  return {n: inside[k] for n, k in inner.items()}


def expand(key: str, layers: int) -> list[str]:
  """The keys of a stack of layers; of anything else its one key."""
  if "{n}" not in key:
    return [key]
  return [key.replace("{n}", str(n)) for n in range(layers)]


class Place(NamedTuple):
  """Where a parameter lies: in which tensor, of what shape, from where on."""
  key: str
  transform: Transform
  shape: tuple[int, ...]
  origin: tuple[int, ...]


def places(family: Family, shapes: Mapping[str, Any]) -> dict[str, Place]:
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
      found[path] = Place(key, transform, shape, (0,) * len(shape))
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
      found[path] = Place(
          key, transform, (*before, whole, *after),
          (*[0] * len(before), start, *[0] * len(after)))
    taken.sort()
    if [0, *(b for _, b in taken)] != [*(a for a, _ in taken), whole]:
      raise ValueError(f"the pieces of {key!r} do not fill it: {taken}")
  return found


def faults_of(
    reader: Reader,
    names: Mapping[str, str],
    family: Family,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
) -> list[str]:
  """What does not match between a checkpoint and the parameters, all of it.

  Args:
    reader: the open checkpoint.
    names: the family's keys -> the file's.
    family: whose rules apply.
    shapes: path -> shape of our parameter.
  """
  faults, claimed, absent = [], set(), {}
  placed = places(family, shapes)
  for path, leaf in shapes.items():
    if path not in placed:
      faults.append(f"no rule for our {path!r}{nearest(path, family.rules)}")
      continue
    key, _, shape, _ = placed[path]
    wanted = expand(key, leaf.shape[0] if "{n}" in key else 0)
    claimed.update(wanted)
    if lost := [name for name in wanted if name not in names]:
      faults.append("")  # its place in the list; told below
      absent[len(faults) - 1] = (path, lost)
    shaped: dict[tuple[int, ...], list[str]] = {}
    for name in wanted:
      if name in names and (found := reader.shape(names[name])) != shape:
        shaped.setdefault(found, []).append(names[name])
    for found, keys in shaped.items():
      faults.append(f"{folded(keys)!r} has shape {list(found)}, our {path} "
                    f"needs {list(shape)}")
    unread = [names[n] for n in wanted
              if n in names and reader.dtype(names[n]) is None]
    if unread:
      faults.append(f"{folded(unread)!r} has a dtype that is not read")
  ignored = re.compile("|".join(f"(?:{p})" for p in family.ignored) or "(?!)")
  spare = sorted(n for n in names if n not in claimed)
  for at, (path, lost) in absent.items():
    faults[at] = (f"missing {folded(lost)!r} (our {path})"
                  f"{nearest(lost[0], spare)}")
  groups: dict[str, list[str]] = {}
  for name in spare:
    if not ignored.search(name):
      groups.setdefault(_NUMBER.sub("{n}", name, count=1), []).append(name)
  return faults + [f"unexpected {folded([names[n] for n in group])!r}"
                   for group in groups.values()]


def refuse(faults: Mapping[tuple[str, str], Sequence[str]]) -> None:
  """Raises one error for all parts of a model.

  Args:
    faults: (part, the checkpoint it is read from) -> its faults.

  Raises:
    InputError: unless there are none.
  """
  found = {where: lines for where, lines in faults.items() if lines}
  if not found:
    return
  if len(faults) == 1:
    (_, source), lines = next(iter(found.items()))
    raise InputError(f"{source} does not fit the model:\n  "
                     + "\n  ".join(lines))
  raise InputError("the weights do not fit the model:" + "".join(
      f"\n {part}, from {source}:\n  " + "\n  ".join(lines)
      for (part, source), lines in found.items()))


def origin(reader: Reader, keys: Sequence[str]) -> str:
  """Every file and what it gives: "F:a.{0..1}.b; G:a.{2..3}.b"."""
  files: dict[str, list[str]] = {}
  for key in keys:
    files.setdefault(reader.origin(key).removesuffix(key), []).append(key)
  return "; ".join(file + folded(held) for file, held in files.items())


def folded(keys: Sequence[str]) -> str:
  """["a.0.b", "a.1.b"] -> "a.{0..1}.b", the file's own spelling."""
  if len(keys) == 1:
    return keys[0]
  numbers = sorted(int(_NUMBER.search(key)[0]) for key in keys)
  first, last = numbers[0], numbers[-1]
  text = (f"{first}..{last}" if numbers == list(range(first, last + 1))
          else ",".join(map(str, numbers)))
  return _NUMBER.sub(f"{{{text}}}", keys[0], count=1)
