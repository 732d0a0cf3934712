"""Random access to the records of one JSON array or JSONL file.

What a record means is up to the subclass; see llava.py and image_lists.py.
"""

import json
import threading
from pathlib import Path
from typing import Any

from align_jax.data import records
from align_jax.data.below import folder
from align_jax.data.example import BadSample


class JsonSource:
  """Records by byte offsets.

  Attributes:
    path: the file; an array (JSON) or a record a line (JSONL).
    image_root: images lie below it; a path that leaves it, also through a
      symbolic link, is refused. Default: the file's folder.
  """

  def __init__(self, path: str, image_root: str = ""):
    self.path = Path(path).expanduser()
    self.image_root = folder(image_root or self.path.parent)
    self._spans = records.index(self.path)
    self._open = threading.local()

  def __len__(self) -> int:
    return len(self._spans)

  def record(self, index: int) -> tuple[dict[str, Any], str, int]:
    """A record, "file:line", and the line.

    Raises:
      BadSample: it is no object.
    """
    start, length, line = self._spans[index]
    origin = f"{self.path}:{line}"
    try:
      record = json.loads(self._read(int(start), int(length)))
    except ValueError as error:
      raise BadSample(origin, f"no valid JSON: {error}") from error
    if not isinstance(record, dict):
      raise BadSample(origin, f"a record is an object, not {record!r:.60}")
    return record, origin, int(line)

  def _read(self, start: int, length: int) -> bytes:
    # A file of its own for each thread: they would move each other's place.
    if not hasattr(self._open, "file"):
      self._open.file = self.path.open("rb")
    self._open.file.seek(start)
    return self._open.file.read(length)
