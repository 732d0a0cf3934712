"""How a foreign array is turned into ours, and slices of it alone.

  "(h k) d -> d h k"     split the first axis in two, then transpose

Axes are words; `(h k)` is one axis made of several, the first the slowest; a
number is an axis of that size. Left of the arrow stands the foreign array.

  "(g k)@-2 d -> d g k"  the last but one piece of a longer first axis

`@n` says that the foreign axis is longer than ours and where ours begins, in
multiples of its own length, from the end if negative: so are q, k and v told
apart in a tensor that holds them all.
"""

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

Slices = tuple[slice, ...]


_GROUP = re.compile(r"(\([^)]*\)|[^\s()@]+)(?:@(-?\d+))?")


def _axes(side: str) -> list[list[str]]:
  return [group.strip("()").split() for group, _ in _GROUP.findall(side)]


class Transform:
  """One transform, both ways.

  Attributes:
    piece: (foreign axis, place in it) where that axis is longer than ours,
      else None. Everything below but `start` is about our piece alone.

  Raises:
    ValueError: the two sides do not name the same axes, or several foreign
      axes are cut.
  """

  def __init__(self, text: str):
    left, _, right = text.partition("->")
    self.text, self.left, self.right = text, _axes(left), _axes(right)
    named = [sorted(n for group in side for n in group if n != "1")
             for side in (self.left, self.right)]
    if named[0] != named[1]:
      raise ValueError(f"transform {text!r} has other axes left and right")
    cuts = [(axis, int(place)) for axis, (_, place)
            in enumerate(_GROUP.findall(left)) if place]
    if len(cuts) > 1 or "@" in right:
      raise ValueError(f"transform {text!r}: one foreign axis may be cut")
    self.piece = cuts[0] if cuts else None

  def _sizes(self, ours: Sequence[int]) -> dict[str, int]:
    """The size of every axis, from our array's shape."""
    if len(ours) != len(self.right):
      raise ValueError(
          f"transform {self.text!r} makes {len(self.right)} axes, the "
          f"parameter has shape {tuple(ours)}")
    sizes = {"1": 1}
    for size, group in zip(ours, self.right):
      sizes |= {name: int(name) for name in group if name.isdigit()}
      open_ = [name for name in group if name not in sizes]
      if len(open_) > 1:
        raise ValueError(f"transform {self.text!r}: the sizes of "
                         f"{' and '.join(open_)} are not known")
      for name in open_:
        sizes[name] = size // math.prod(
            sizes[n] for n in group if n != name)
    return sizes

  def foreign_shape(self, ours: Sequence[int]) -> tuple[int, ...]:
    """The shape that the foreign array must have."""
    sizes = self._sizes(ours)
    return tuple(math.prod(sizes[n] for n in group) for group in self.left)

  def start(self, ours: Sequence[int], whole: int) -> int:
    """Where our piece begins in a foreign axis of `whole`; 0 if uncut."""
    if self.piece is None:
      return 0
    axis, place = self.piece
    start = place * self.foreign_shape(ours)[axis]
    return start if place >= 0 else whole + start

  def outer_axis(self) -> int:
    """Our axis that lies outermost in the file, so that a cut of it is one
    run of bytes; 0 where it is part of a larger axis of ours."""
    first = self.left[0][0] if self.left else ""
    return next((i for i, group in enumerate(self.right)
                 if group == [first]), 0)

  def read(self, fetch: Callable[[Slices], np.ndarray], shape: Sequence[int],
           index: Slices) -> np.ndarray:
    """`index` of our array, fetching no more of the foreign one than needed.

    Along an axis `(a b)` a cut of `a` is fetched alone; a cut of `b` is made
    after fetching, since it lies scattered.

    Args:
      fetch: slices of the foreign array -> values.
      shape: of our whole array.
      index: what is wanted of it.
    """
    sizes = self._sizes(shape)
    wanted = {name: (0, size) for name, size in sizes.items()}
    later: list[slice] = []
    for cut, group, size in zip(index, self.right, shape):
      start, stop, _ = cut.indices(size)
      if len(group) == 1:
        wanted[group[0]] = (start, stop)
        later.append(slice(None))
      else:
        later.append(slice(start, stop))

    slices, parts, cuts, names = [], [], [], []
    for first, *rest in self.left:
      inner = math.prod(sizes[n] for n in rest)
      start, stop = wanted[first]
      slices.append(slice(start * inner, stop * inner))
      for name in (first, *rest):
        if name == "1":
          continue
        names.append(name)
        whole = name != first
        parts.append(sizes[name] if whole else stop - start)
        cuts.append(slice(*wanted[name]) if whole else slice(None))
    array = fetch(tuple(slices)).reshape(parts)[tuple(cuts)]
    order = [names.index(n) for group in self.right for n in group if n != "1"]
    array = array.transpose(order)
    array = array.reshape([
        math.prod(wanted[n][1] - wanted[n][0] for n in group)
        for group in self.right])
    return array[tuple(later)]

  def write(self, ours: np.ndarray) -> np.ndarray:
    """Our whole array -> the foreign one."""
    sizes = self._sizes(ours.shape)
    names = [n for group in self.right for n in group if n != "1"]
    array = ours.reshape([sizes[n] for n in names])
    order = [names.index(n) for group in self.left for n in group if n != "1"]
    # reshape last: numpy makes a contiguous scalar an array of one.
    return np.ascontiguousarray(array.transpose(order)).reshape(
        self.foreign_shape(ours.shape))
