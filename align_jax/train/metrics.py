"""Metrics of a run: metrics.jsonl and TensorBoard, one line a log."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import jax


class MetricsLog:
  """Writes from one process; what a killed run logged too far is dropped."""

  def __init__(self, workdir: Path, step: int = 0):
    """Opens the logs of a run that goes on after `step`."""
    from tensorboardX import SummaryWriter  # imports protobuf: only here

    path = workdir / "metrics.jsonl"
    if path.exists():
      kept = [line for line in path.read_text(encoding="utf-8").splitlines()
              if _step(line) <= step]
      path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    self._file = path.open("a", encoding="utf-8")
    self._board = SummaryWriter(str(workdir / "tensorboard"),
                                purge_step=step + 1)

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Adds the values of a step; numbers go to TensorBoard too."""
    self._file.write(json.dumps({"step": step, **values}) + "\n")
    self._file.flush()
    for name, value in values.items():
      if isinstance(value, int | float):
        self._board.add_scalar(name, value, step)

  def close(self) -> None:
    self._file.close()
    self._board.close()


def memory() -> dict[str, float]:
  """GiB of this process, and of its fullest device where that is known."""
  unit = 1 if sys.platform == "darwin" else 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  found = {"host_memory_gib": peak / 2**30}
  stats = [d.memory_stats() or {} for d in jax.local_devices()]
  peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
  if peaks:
    found["device_memory_gib"] = max(peaks) / 2**30
  return found


def _step(line: str) -> float:
  """A line's step; infinite for one that a kill left unfinished."""
  try:
    return json.loads(line)["step"]
  except (ValueError, KeyError):
    return float("inf")
