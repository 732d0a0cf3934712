"""Where each record of a JSON or JSONL file lies, found in one pass.

Only three numbers a record stay in memory: where it begins, how long it is,
and on which line, for error messages.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from align_jax.errors import InputError

CHUNK = 1 << 22

# What matters for nesting. A whole string is one match, so that brackets in
# it do not count; an unfinished one at the end of a chunk is a lone quote.
_MARK = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["{}\[\]]', re.DOTALL)

_BOM = b"\xef\xbb\xbf"


class Span(NamedTuple):
  """A record's first byte, its length in bytes, and its line, from 1."""
  start: int
  length: int
  line: int


def index(path: Path) -> np.ndarray:
  """i64[records, 3], a `Span` a record.

  A file whose first character is `[` is one JSON array; any other is JSONL,
  where blank lines are left out.

  Raises:
    InputError: the file does not exist, or its array is malformed.
  """
  try:
    with path.open("rb") as file:
      if file.read(len(_BOM)) != _BOM:
        file.seek(0)
      while (head := file.read(1)).isspace():
        pass
  except OSError as error:
    raise InputError(f"{path}: {error.strerror}") from error
  spans = _array(path) if head == b"[" else _lines(path)
  return np.asarray(list(spans), np.int64).reshape(-1, 3)


def _lines(path: Path) -> Iterator[Span]:
  """Spans of the lines of a JSONL file."""
  at = 0
  with path.open("rb") as file:
    for number, line in enumerate(file, 1):
      if not line.isspace():
        yield Span(at, len(line), number)
      at += len(line)


def _array(path: Path) -> Iterator[Span]:
  """Spans of the elements of a JSON array; each is an object or an array."""
  depth, began, began_line = 0, 0, 0
  base, line = 0, 1  # of the first byte of `text`
  text = b""
  with path.open("rb") as file:
    while chunk := file.read(CHUNK):
      text += chunk
      done, counted = 0, 0
      for mark in _MARK.finditer(text):
        sign = mark.group()
        if sign == b'"':  # the string goes on in the next chunk
          break
        between, done = text[done:mark.start()], mark.end()
        if depth == 1 and (between.strip(b" \t\r\n,")
                           or sign[:1] == b'"'):
          stray = between.strip(b" \t\r\n,") or sign
          raise InputError(
              f"{path}: between two records, after line {began_line or 1}: "
              f"{stray.decode(errors='replace')!r:.60}")
        if sign in b"{[":
          depth += 1
          if depth == 2:
            line += text.count(b"\n", counted, mark.start())
            counted = mark.start()
            began, began_line = base + mark.start(), line
        elif sign in b"}]":
          depth -= 1
          if depth == 1:
            yield Span(began, base + done - began, began_line)
          if depth < 0:
            raise InputError(f"{path}: {sign.decode()!r} at byte "
                             f"{base + mark.start()} closes nothing")
      else:
        done = done if depth == 1 else len(text)
      line += text.count(b"\n", counted, done)
      base += done
      text = text[done:]
  if depth or text:
    raise InputError(f"{path}: the file ends inside "
                     f"{'a string' if text else 'its array'}"
                     + (f"; its last record begins on line {began_line}"
                        if began_line else ""))
