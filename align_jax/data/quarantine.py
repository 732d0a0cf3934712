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
    self._seen = _read(self.path) if self.path else set()
    self._lock = threading.Lock()

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


def quarantined(folder: Path) -> int:
  """Bad samples of a run, over the files of all its processes.

  Processes whose rows share a stream meet the same bad samples, so a sum of
  their own counts would be too high.
  """
  seen: set[tuple[str, str]] = set()
  return len(seen.union(*map(_read, folder.glob("quarantine*.jsonl"))))


def _read(path: Path) -> set[tuple[str, str]]:
  """(origin, reason) of what a file lists; nothing where there is none."""
  seen: set[tuple[str, str]] = set()
  if path.exists():
    for line in path.read_text(encoding="utf-8").splitlines():
      try:
        record = json.loads(line)
      except ValueError:
        continue  # the last line of a run that was killed while writing it
      seen.add((record["origin"], record["reason"]))
  return seen
