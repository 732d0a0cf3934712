"""English that every CPython carries: its manual and its docstrings.

  pydoc_data/topics.py   the language reference, as `help()` shows it
  the standard library   docstrings of its modules, classes and functions

Some two megabytes of plain technical English, always there, for training a
small language model and for its perplexity. Other versions of Python carry
other text, so figures are comparable on one version alone.
"""

import ast
import functools
import hashlib
import re
import sysconfig
from pathlib import Path

from align_jax.data.example import Example
from align_jax.errors import InputError
from align_jax.registry import nearest

SPLITS = ("train", "held_out")

# One document of so many is held out, whole.
_HELD_OUT = 6
_LEFT_OUT = ("test", "idlelib", "lib2to3", "site-packages", "turtledemo",
             "ensurepip", "pydoc_data", "__pycache__")


def in_split(name: str, split: str) -> bool:
  """Whether a document is of this split; each is of one, whole."""
  out = hashlib.sha256(name.encode()).digest()[0] % _HELD_OUT == 0
  return out == (split == "held_out")


@functools.cache
def documents(split: str) -> dict[str, str]:
  """Name -> text of a split's documents, in order of name.

  Raises:
    InputError: this Python was installed without its manual.
  """
  try:
    from pydoc_data.topics import topics
  except ImportError as error:
    raise InputError("this Python lacks pydoc_data.topics, the manual that "
                     "the source `english` reads") from error
  found = {name: text for topic, text in topics.items()
           if in_split(name := f"topic/{topic}", split)}
  library = Path(sysconfig.get_path("stdlib"))
  for file in library.rglob("*.py"):
    place = file.relative_to(library)
    name = f"library/{place.as_posix()}"
    if (place.parts[0] in _LEFT_OUT or "test" in place.parts
        or not in_split(name, split)):
      continue
    try:
      tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
      continue
    said = [text for node in ast.walk(tree) if isinstance(
        node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and (text := ast.get_docstring(node)) and len(text) > 60]
    if said:
      found[name] = "\n\n".join(said)
  return dict(sorted(found.items()))


def passages(split: str, size: int) -> list[str]:
  """The split's documents in pieces of at most `size` bytes, in order.

  Pieces end between words; white space is reduced to single spaces, and to
  a newline between paragraphs.
  """
  pieces: list[str] = []
  for text in documents(split).values():
    piece = ""
    for paragraph in re.split(r"\n\s*\n", text):
      for word in [*paragraph.split(), "\n"]:
        if len((piece + word).encode()) + 1 > size:
          pieces.append(piece.strip())
          piece = ""
        if word != "\n" and piece and not piece.endswith("\n"):
          word = f" {word}"
        if len(word.encode()) < size:  # a longer one is no word
          piece += word
    pieces.append(piece.strip())
  return [p for p in pieces if p]


class English:
  """Passages of that text, each all of a sample, without images.

  Attributes:
    split: "train", or "held_out": other documents, for perplexity.
    size: bytes of a passage at most, and so its tokens in any byte-level
      vocabulary.
  """

  def __init__(self, split: str = "train", size: int = 400):
    if split not in SPLITS:
      raise InputError(f"english: {split!r} is none of {', '.join(SPLITS)}"
                       f"{nearest(split, SPLITS)}")
    if size < 40:
      raise InputError(f"english: size is {size} (at least 40)")
    self.split, self.passages = split, passages(split, size)

  def __len__(self) -> int:
    return len(self.passages)

  def __getitem__(self, index: int) -> Example:
    name = f"english/{self.split}/{index}"
    return {"id": name, "origin": name, "images": [], "conversation": [
        {"role": "user", "content": ""},
        {"role": "assistant", "content": self.passages[index]}]}
