"""Rows of Hugging Face data sets as they lie on the hub: parquet files.

An image column holds a struct {bytes, path}. Images stay in the file until
they are looked at; a group of rows is read at a time.
"""

import functools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from align_jax.data.tables import Row
from align_jax.errors import InputError
from align_jax.registry import nearest


class Parquet:
  """The rows of several parquet files as one table.

  Files may differ in columns that nobody asks for.

  Attributes:
    paths: the files, in order.
  """

  def __init__(self, paths: Sequence[Path]):
    import pyarrow as pa
    import pyarrow.parquet as pq
    self.paths = list(paths)
    self._open = threading.local()
    self._groups: list[tuple[int, int, int]] = []  # file, group, first row
    self._starts: list[int] = []
    self._columns: list[list[str]] = []  # of each file
    for number, path in enumerate(self.paths):
      try:
        file = pq.ParquetFile(path)
      except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: no parquet file: {error}") from error
      self._columns.append(file.schema_arrow.names)
      row = 0
      for group in range(file.num_row_groups):
        self._groups.append((number, group, row))
        self._starts.append(len(self))
        row += file.metadata.row_group(group).num_rows
        self._total = self._starts[-1] + (
            file.metadata.row_group(group).num_rows)

  _total = 0

  def __len__(self) -> int:
    return self._total

  def origin(self, index: int) -> str:
    """"file, row n", from 0."""
    file, _, first, offset = self._place(index)
    return f"{self.paths[file]}, row {first + offset}"

  def has(self, index: int, column: str) -> bool:
    """Whether the file of this row has the column."""
    return column in self._columns[self._place(index)[0]]

  def row(self, index: int, columns: Sequence[str]) -> Row:
    """One row, these columns alone.

    Raises:
      InputError: its file has no such column.
    """
    file, group, _, offset = self._place(index)
    self._check(file, columns)
    table = self._read(file, group, tuple(columns))
    return Row({c: table[c][offset].as_py() for c in columns},
               self.origin(index))

  def rows(self, columns: Sequence[str]) -> Iterator[Row]:
    """All rows, these columns alone."""
    return (self.row(i, columns) for i in range(len(self)))

  def image(self, index: int, column: str) -> bytes | None:
    """The image file in a row; None where there is none.

    Raises:
      InputError: what is there is no image.
    """
    value = self.row(index, [column]).fields[column]
    if value is None:
      return None
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
      raise InputError(f"{self.origin(index)}: field {column!r} holds no "
                       "image bytes; data sets that name files alone must be "
                       "downloaded with their images")
    return data

  def _check(self, file: int, columns: Sequence[str]) -> None:
    there = self._columns[file]
    if lost := [column for column in columns if column not in there]:
      raise InputError(
          f"{self.paths[file]}: " + "; ".join(
              f"no column {column!r}{nearest(column, there)}"
              for column in lost) + f" (there are {', '.join(there)})")

  def _place(self, index: int) -> tuple[int, int, int, int]:
    import bisect
    at = bisect.bisect_right(self._starts, index) - 1
    return (*self._groups[at], index - self._starts[at])

  def _read(self, file: int, group: int, columns: tuple[str, ...]) -> Any:
    # Files and groups of each thread are its own.
    if not hasattr(self._open, "read"):
      import pyarrow.parquet as pq
      opened = functools.lru_cache(maxsize=8)(
          lambda file: pq.ParquetFile(self.paths[file]))
      self._open.read = functools.lru_cache(maxsize=2)(
          lambda file, group, columns: opened(file).read_row_group(
              group, columns=list(columns)))
    return self._open.read(file, group, columns)


def find(folder: Path, pattern: str) -> list[Path]:
  """The parquet files of a split.

  Raises:
    InputError: there is none.
  """
  paths = sorted(folder.glob(pattern))
  if not paths:
    raise InputError(f"no {pattern} in {folder}")
  return paths
