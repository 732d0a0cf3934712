"""Records of published files, each with the place it is from.

  json_rows    an array, also under a key; an object of records; JSONL
  table_rows   CSV and TSV
  parquet      see parquet.py

A record's fields are asked for by name and kind; what is missing or of
another kind is an error with the file, the line and the field.
"""

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from align_jax.errors import InputError
from align_jax.registry import nearest

_DECODER = json.JSONDecoder()


class Row:
  """A record.

  Attributes:
    fields: what it holds.
    origin: "file:line", for errors.
    key: its name, in an object of records.
  """

  def __init__(self, fields: Any, origin: str, key: str = ""):
    if not isinstance(fields, Mapping):
      raise InputError(f"{origin}: a record is an object, not {fields!r:.60}")
    self.fields, self.origin, self.key = fields, origin, key

  def fault(self, message: str) -> InputError:
    """An error that says where."""
    return InputError(f"{self.origin}: {message}")

  def get(self, name: str, *kinds: type) -> Any:
    """A field of one of these kinds.

    Raises:
      InputError: it is missing or of another kind.
    """
    if name not in self.fields:
      raise self.fault(f"no field {name!r}{nearest(name, self.fields)} "
                       f"(there are {', '.join(map(str, self.fields))})")
    value = self.fields[name]
    # True is an int in Python, and no number in a file.
    if kinds and (not isinstance(value, kinds)
                  or isinstance(value, bool) and bool not in kinds):
      names = " or ".join(_KINDS.get(k, k.__name__) for k in kinds)
      raise self.fault(f"field {name!r} is {value!r:.60}, not {names}")
    return value

  def text(self, name: str) -> str:
    """A text that is not empty, without white space around it.

    A number is taken as its text.
    """
    value = str(self.get(name, str, int, float)).strip()
    if not value:
      raise self.fault(f"field {name!r} is empty")
    return value

  def texts(self, name: str) -> tuple[str, ...]:
    """A list of texts, at least one."""
    values = self.get(name, list, tuple)
    if not values or not all(isinstance(v, str) for v in values):
      raise self.fault(f"field {name!r} is {values!r:.60}, not a list of "
                       "texts")
    return tuple(values)

  def rows(self, name: str) -> list["Row"]:
    """A list of records, at least one."""
    values = self.get(name, list)
    if not values:
      raise self.fault(f"field {name!r} is empty")
    return [Row(v, f"{self.origin}, {name}[{i}]")
            for i, v in enumerate(values)]

  def one_of(self, name: str, allowed: Sequence[str]) -> str:
    """A text out of a few."""
    value = self.text(name)
    if value not in allowed:
      raise self.fault(f"field {name!r} is {value!r}, not one of "
                       f"{', '.join(allowed)}")
    return value


_KINDS = {str: "a text", int: "a whole number", float: "a number",
          list: "a list", tuple: "a list", dict: "an object", bytes: "bytes"}


def read_text(path: Path) -> str:
  """A file's text.

  Raises:
    InputError: there is none, or it is no UTF-8.
  """
  try:
    return path.read_text(encoding="utf-8-sig")
  except OSError as error:
    raise InputError(f"{path}: {error.strerror}") from error
  except UnicodeDecodeError as error:
    raise InputError(f"{path}: {error}") from error


def json_rows(path: Path, key: str = "") -> Iterator[Row]:
  """Records of a JSON or JSONL file.

  Args:
    path: the file.
    key: of a top-level object, under which the array of records is. Without
      it an array is read element by element, an object record by record
      (see `Row.key`), and a file of several values as JSONL.

  Raises:
    InputError: the file is missing or malformed, with the line.
  """
  text = read_text(path)
  seen = _Lines(path, text)
  at = seen.skip(0)
  if text[at:at + 1] == "[" and not key:
    yield from seen.array(at)
  elif text[at:at + 1] != "{":
    raise seen.fault(at, "neither an array nor an object"
                     if not key else f"no object with {key!r}")
  elif key:
    names = []
    for name, start, _ in seen.pairs(at):
      names.append(name)
      if name == key:
        if text[start] != "[":
          raise seen.fault(start, f"{key!r} is no list")
        yield from seen.array(start)
        return
    raise seen.fault(at, f"no {key!r}{nearest(key, names)}")
  elif text[seen.skip(seen.value(at)[1]):]:
    for number, line in enumerate(text.splitlines(), 1):
      if line.strip():
        try:
          yield Row(json.loads(line), f"{path}:{number}")
        except json.JSONDecodeError as error:
          raise InputError(f"{path}:{number}: no valid JSON: "
                           f"{error}") from error
  else:
    values = [(n, s, v) for n, s, v in seen.pairs(at)]
    # One record alone, as the only line of a JSONL file, is no object of
    # records.
    if values and not all(isinstance(v, dict) for _, _, v in values):
      yield Row(seen.value(at)[0], f"{path}:{seen.line(at)}")
      return
    for name, start, value in values:
      yield Row(value, f"{path}:{seen.line(start)}", name)


def json_value(path: Path, key: str) -> Any:
  """What is under a key of a top-level object.

  Raises:
    InputError: the file is missing or malformed, or has no such key.
  """
  text = read_text(path)
  seen = _Lines(path, text)
  at = seen.skip(0)
  if text[at:at + 1] != "{":
    raise seen.fault(at, f"no object with {key!r}")
  names = []
  for name, _, value in seen.pairs(at):
    if name == key:
      return value
    names.append(name)
  raise seen.fault(at, f"no {key!r}{nearest(key, names)}")


class _Lines:
  """Values of a JSON text with the lines they begin on."""

  def __init__(self, path: Path, text: str):
    self.path, self.text = path, text
    self._at, self._line = 0, 1

  def line(self, at: int) -> int:
    """The line of a place; places are asked for in order."""
    if at < self._at:
      self._at, self._line = 0, 1
    self._line += self.text.count("\n", self._at, at)
    self._at = at
    return self._line

  def fault(self, at: int, message: str) -> InputError:
    return InputError(f"{self.path}:{self.line(at)}: {message}")

  def skip(self, at: int) -> int:
    """The next place that is no white space."""
    while at < len(self.text) and self.text[at] in " \t\r\n":
      at += 1
    return at

  def value(self, at: int) -> tuple[Any, int]:
    """The value there, and where it ends."""
    try:
      return _DECODER.raw_decode(self.text, at)
    except json.JSONDecodeError as error:
      raise self.fault(error.pos, f"no valid JSON: {error.msg}") from error

  def array(self, at: int) -> Iterator[Row]:
    at = self.skip(at + 1)
    while self.text[at:at + 1] != "]":
      value, end = self.value(at)
      yield Row(value, f"{self.path}:{self.line(at)}")
      at = self._next(end, "]")

  def pairs(self, at: int) -> Iterator[tuple[str, int, Any]]:
    """Names, places and values of an object."""
    at = self.skip(at + 1)
    while self.text[at:at + 1] != "}":
      name, end = self.value(at)
      colon = self.skip(end)
      if self.text[colon:colon + 1] != ":":
        raise self.fault(colon, "no valid JSON: a name without a colon")
      start = self.skip(colon + 1)
      value, end = self.value(start)
      yield name, start, value
      at = self._next(end, "}")

  def _next(self, end: int, closing: str) -> int:
    at = self.skip(end)
    if self.text[at:at + 1] == ",":
      return self.skip(at + 1)
    if self.text[at:at + 1] != closing:
      raise self.fault(at, f"no valid JSON: expected , or {closing}")
    return at


def table_rows(path: Path, columns: Sequence[str] = (),
               delimiter: str = ",") -> Iterator[Row]:
  """Records of a CSV or TSV file.

  Args:
    path: the file.
    columns: their names where the file has no header.
    delimiter: a comma or a tab.

  Raises:
    InputError: the file is missing, or a line has too many or too few
      values.
  """
  csv.field_size_limit(sys.maxsize)  # images lie in some tables as text
  text = read_text(path)
  table = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
  names = list(columns) or next(table, [])
  before = table.line_num
  for values in table:
    origin, before = f"{path}:{before + 1}", table.line_num
    if not values:
      continue
    if len(values) != len(names):
      raise InputError(f"{origin}: {len(values)} values for the columns "
                       f"{', '.join(names)}")
    yield Row(dict(zip(names, values)), origin)
