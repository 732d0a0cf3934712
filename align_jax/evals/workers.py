"""Processes that run one `align-jax` command after another.

A study's cells are small: imports, tracing and compilation would cost more
than they. So a worker stays, keeps what it has traced, and all workers share
compiled programs in a folder (JAX's persistent cache):

  with Workers(2, workdir) as run:     two, each with half of the processors
    run(["align-jax", "train", ...])   -> what it printed; from any thread

A training of two steps of mini/lm on busy processors: 33 s the first, 5 s with
another seed and rate, 19 s in a new worker that finds its programs.

  DIR/compiled        programs, by what is compiled
  DIR/log/worker_0    what the first worker wrote to standard error, where
                      there are several
"""

import contextlib
import gc
import io
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from align_jax.errors import InputError

# So long may a training that is under way save, once its worker shall end.
GRACE_SECONDS = 30.0
# XLA on CPU takes its buffers anew for each step, and the kernel clears them
# page by page. In huge pages a step of mini/lm took 1.24 s, not 1.49. Of glibc
# from 2.35; what does not know it ignores it.
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class Workers:
  """Runs command lines; as many at a time as there are workers.

  Each has its own share of the processors, so that several at a time do not
  wait for one another; what a command computes does not depend on how many
  there are. Ctrl-C reaches them through here: a training saves and stops.
  """

  def __init__(self, count: int, workdir: str | Path):
    """Starts them; they import nothing before their first command.

    Args:
      count: of workers.
      workdir: for compiled programs and logs.

    Raises:
      InputError: less than one, or more than there are processors.
    """
    mine = sorted(os.sched_getaffinity(0)) if hasattr(
        os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if not 1 <= count <= len(mine):
      raise InputError(f"{count} jobs at a time: there are {len(mine)} "
                       "processors, and each job needs one of its own")
    self._all = [_Worker(i, Path(workdir), mine[i::count], count > 1)
                 for i in range(count)]
    self._free: queue.Queue[_Worker] = queue.Queue()
    for worker in self._all:
      self._free.put(worker)

  def __call__(self, command: list[str]) -> str:
    """Runs `align-jax ...` when a worker is free; its standard output.

    Raises:
      RuntimeError: it failed; the message says where its own words are.
    """
    worker = self._free.get()
    try:
      return worker.run(command)
    finally:
      self._free.put(worker)

  def __enter__(self) -> "Workers":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends them; a training that is under way saves first."""
    for worker in self._all:
      worker.hang_up()
    for worker in self._all:
      worker.wait()


class _Worker:
  """One process, and the pipe to it."""

  def __init__(self, number: int, workdir: Path, processors: list[int],
               logged: bool):
    self.log = workdir / "log" / f"worker_{number}" if logged else None
    errors: IO[Any] | None = None
    if self.log:
      self.log.parent.mkdir(parents=True, exist_ok=True)
      errors = self.log.open("ab")
    self.process = subprocess.Popen(
        [sys.executable, "-m", "align_jax.evals.workers"], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        env=_HUGE_PAGES | os.environ | _shared_cache(workdir),
        start_new_session=True)
    if errors:
      errors.close()
    if hasattr(os, "sched_setaffinity"):
      os.sched_setaffinity(self.process.pid, processors)

  def run(self, command: list[str]) -> str:
    try:
      self.process.stdin.write(json.dumps(command[1:]) + "\n")
      self.process.stdin.flush()
      answer = self.process.stdout.readline()
    except BrokenPipeError:
      answer = ""
    said = (json.loads(answer) if answer else
            {"code": f"the end of its process ({self.process.wait()})"})
    if said["code"]:
      raise RuntimeError(f"{shlex.join(command)} failed with code "
                         f"{said['code']}"
                         + (f"; see {self.log}" if self.log else ""))
    return said["printed"]

  def hang_up(self) -> None:
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.close()

  def wait(self) -> None:
    try:
      self.process.wait(GRACE_SECONDS + 10)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()
    self.process.stdout.close()


def _shared_cache(workdir: Path) -> dict[str, str]:
  """The environment that has JAX keep every program it compiles."""
  return {"JAX_COMPILATION_CACHE_DIR": str((workdir / "compiled").absolute()),
          "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
          "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


def serve(commands: IO[str], answers: IO[str]) -> None:
  """A worker's life: a JSON list of words a line in, an answer a line out."""
  from align_jax.cli.main import main

  waiting: queue.Queue[str] = queue.Queue()

  def listen() -> None:
    for line in commands:
      waiting.put(line)
    # Whoever gave the commands is gone, or wants an end: a training saves and
    # stops at this signal, anything else ends.
    waiting.put("")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)

  threading.Thread(target=listen, daemon=True).start()
  while line := waiting.get():
    argv = json.loads(line)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      try:
        code = main(argv)
      except SystemExit as end:  # of argparse
        code = end.code or 0
      except BaseException:
        import traceback
        traceback.print_exc()
        code = 1
    answers.write(json.dumps({"code": code, "printed": printed.getvalue()})
                  + "\n")
    answers.flush()
    gc.collect()  # a run's arrays, before the next run's are made


if __name__ == "__main__":
  # Standard output is for answers alone, whatever a library prints there.
  own = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  serve(sys.stdin, own)
