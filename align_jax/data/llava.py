"""LLaVA's conversation files, JSON or JSONL, as a source of examples.

  {"id": "1", "image": "a/b.jpg",
   "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                     {"from": "gpt", "value": "A cat."}]}

`image` is a path, a list of paths, or absent. Each image has one `<image>`
in the conversation.
"""

import json
import threading
from pathlib import Path
from typing import Any

from align_jax.data import records
from align_jax.data.example import BadSample, Example, Message
from align_jax.errors import InputError
from align_jax.registry import nearest

ROLES = {"human": "user", "user": "user", "gpt": "assistant",
         "assistant": "assistant", "system": "system"}


class Llava:
  """Random access to a LLaVA file by byte offsets.

  Attributes:
    path: the file; an array (JSON) or a record a line (JSONL).
    image_root: images lie below it; a path that leaves it, also through a
      symbolic link, is refused. Default: the file's folder.
  """

  def __init__(self, path: str, image_root: str = ""):
    self.path = Path(path).expanduser()
    root = Path(image_root).expanduser() if image_root else self.path.parent
    if not root.is_dir():
      raise InputError(f"image_root {str(root)!r} is no folder")
    self.image_root = root.resolve()
    self._spans = records.index(self.path)
    self._open = threading.local()

  def __len__(self) -> int:
    return len(self._spans)

  def __getitem__(self, index: int) -> Example:
    """One record.

    Raises:
      BadSample: it is not as this module's docstring says, with the reason.
    """
    start, length, line = self._spans[index]
    origin = f"{self.path}:{line}"
    try:
      record = json.loads(self._read(int(start), int(length)))
    except ValueError as error:
      raise BadSample(origin, f"no valid JSON: {error}") from error
    if not isinstance(record, dict):
      raise BadSample(origin, f"a record is an object, not {record!r:.60}")
    names = record.get("image")
    names = [] if names is None else (
        names if isinstance(names, list) else [names])
    return {
        "id": str(record.get("id", f"{self.path.stem}:{line}")),
        "origin": origin,
        "conversation": self._conversation(record, origin),
        "images": [self._image(name, origin) for name in names],
    }

  def _read(self, start: int, length: int) -> bytes:
    # A file of its own for each thread: they would move each other's place.
    if not hasattr(self._open, "file"):
      self._open.file = self.path.open("rb")
    self._open.file.seek(start)
    return self._open.file.read(length)

  def _conversation(self, record: dict[str, Any],
                    origin: str) -> list[Message]:
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
      hint = nearest("conversations", record)
      raise BadSample(origin, "no \"conversations\" list with turns" + hint)
    messages = []
    for number, turn in enumerate(turns):
      who = turn.get("from") if isinstance(turn, dict) else None
      value = turn.get("value") if isinstance(turn, dict) else None
      if who not in ROLES:
        raise BadSample(origin, f"turn {number} is from {who!r}, not from one "
                        f"of {', '.join(ROLES)}")
      if not isinstance(value, str):
        raise BadSample(origin, f"turn {number} has the value {value!r:.60}, "
                        "not a string")
      # White space around a turn is the file's, not the speaker's.
      messages.append({"role": ROLES[who], "content": value.strip()})
    return messages

  def _image(self, name: Any, origin: str) -> Path:
    if not isinstance(name, str) or not name:
      raise BadSample(origin, f"an image is a path, not {name!r:.60}")
    try:
      path = (self.image_root / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:
      raise BadSample(origin, f"image {name!r}: {error}") from error
    if not path.is_relative_to(self.image_root):
      raise BadSample(origin, f"image {name!r} leaves the image folder "
                      f"{str(self.image_root)!r}")
    return path
