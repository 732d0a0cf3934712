"""How prompts are cut so that what they share is read once.

Questions about one image share everything up to the question:

  group    images, tokens ..... prefix ..... | rest
  "is it blue?"    <|im_start|> user <image>x16 | is it blue? ... assistant
  "what shape?"    <|im_start|> user <image>x16 | what shape? ... assistant

The prefix is prefilled once for the group; its cache row is then gathered for
every question. Prefixes and rests are padded to a few lengths, so that few
shapes are compiled.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Prompt:
  """What the model shall continue.

  Attributes:
    tokens: i32[n].
    visual: i32[n]; -1 text, slot * T + t a visual token, -2 - x special x.
    images: names the set of images; equal names are encoded once. None for
      text alone.
    extras: what the connector reads of the prompt, such as its instruction:
      images are then encoded once for each of these.
  """
  tokens: np.ndarray
  visual: np.ndarray
  images: Hashable = None
  extras: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  @property
  def encoded(self) -> Hashable:
    """Equal for prompts whose visual tokens are the same."""
    if self.images is None:
      return None
    return self.images, tuple((name, self.extras[name].tobytes())
                              for name in sorted(self.extras))


@dataclasses.dataclass(frozen=True)
class Group:
  """Prompts over the same visual tokens; `shared` is their prefix's length.
  """
  images: Hashable
  shared: int
  members: tuple[int, ...]


def bucket(length: int, smallest: int = 8) -> int:
  """The padded length: a power of two or one and a half of one.

  >>> [bucket(n) for n in (0, 3, 9, 17, 45, 90)]
  [0, 8, 12, 24, 48, 96]
  """
  if not length:
    return 0
  size = smallest
  while size < length:
    if size + size // 2 >= length:
      return size + size // 2
    size *= 2
  return size


def shared_prefix(prompts: Sequence[Prompt]) -> int:
  """Length of the common prefix; 0 for one prompt, never a whole prompt."""
  if len(prompts) < 2:
    return 0
  shortest = min(len(p.tokens) for p in prompts)
  columns = np.stack([np.stack([p.tokens[:shortest], p.visual[:shortest]])
                      for p in prompts])
  same = (columns == columns[0]).all(axis=(0, 1))
  first = shortest if same.all() else int(same.argmin())
  return min(first, shortest - 1)


def groups(prompts: Sequence[Prompt], share: bool = True) -> list[Group]:
  """Prompts by their visual tokens, longest prefix first.

  Args:
    prompts: to be cut.
    share: False reads every prompt whole.
  """
  alike: dict[Hashable, list[int]] = defaultdict(list)
  for i, prompt in enumerate(prompts):
    alike[prompt.encoded].append(i)
  found = [Group(prompts[members[0]].images,
                 shared_prefix([prompts[i] for i in members])
                 if share else 0, tuple(members))
           for members in alike.values()]
  return sorted(found, key=lambda g: -g.shared)


def waves(found: Sequence[Group], rows: int) -> Iterator[list[Group]]:
  """Groups whose prefixes live in one cache of at most `rows` rows."""
  for start in range(0, len(found), rows):
    yield list(found[start:start + rows])


def rows_for(count: int, rows: int) -> int:
  """Rows to compile for `count`: a power of two, at most `rows`."""
  size = 1
  while size < min(count, rows):
    size *= 2
  return min(size, rows)


def pad(arrays: Sequence[np.ndarray], rows: int, length: int,
        fill: int = 0) -> np.ndarray:
  """Ragged rows as i32[rows,length], padded on the right and below."""
  out = np.full((rows, length), fill, np.int32)
  for row, array in zip(out, arrays):
    row[:len(array)] = array
  return out


def lengths(arrays: Sequence[np.ndarray], rows: int) -> np.ndarray:
  """i32[rows], 0 for rows that are padding."""
  out = np.zeros(rows, np.int32)
  out[:len(arrays)] = [len(a) for a in arrays]
  return out


def stack_extras(prompts: Sequence[Prompt],
                 rows: int) -> dict[str, np.ndarray]:
  """{name: [rows,1,...]}: each prompt's own, zeros for text alone."""
  known = {name: x for p in prompts for name, x in p.extras.items()}
  out = {}
  for name, x in known.items():
    out[name] = np.zeros((rows, 1, *x.shape), x.dtype)
    for row, prompt in zip(out[name], prompts):
      row[0] = prompt.extras.get(name, 0)
  return out
