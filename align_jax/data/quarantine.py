"""Bad samples: counted and listed, never replaced."""

import json
import threading
from pathlib import Path

from align_jax.data.example import BadSample


class Quarantine:
  """The bad samples of a run, each once.

  Attributes:
    path: a JSONL file with one line a sample, {"origin", "source", "reason"};
      what an interrupted run wrote there still counts. None: only counted.
  """

  def __init__(self, path: str | Path | None = None):
    self.path = Path(path) if path else None
    self._seen: set[tuple[str, str]] = set()
    self._lock = threading.Lock()
    if self.path and self.path.exists():
      for line in self.path.read_text(encoding="utf-8").splitlines():
        try:
          record = json.loads(line)
        except ValueError:
          continue  # the last line of a run that was killed while writing it
        self._seen.add((record["origin"], record["reason"]))

  def __len__(self) -> int:
    return len(self._seen)

  def add(self, sample: BadSample, source: str) -> None:
    """Notes a bad sample of the named source, from any thread."""
    key = (sample.origin, sample.reason)
    with self._lock:
      if key in self._seen:
        return
      self._seen.add(key)
      if self.path is None:
        return
      self.path.parent.mkdir(parents=True, exist_ok=True)
      with self.path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"origin": sample.origin, "source": source,
                               "reason": sample.reason}) + "\n")
