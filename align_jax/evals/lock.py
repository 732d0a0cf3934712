"""One process at a time, where several may run the same study."""

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def alone(path: Path, progress: Callable[[str], None] = lambda line: None,
          ) -> Iterator[None]:
  """Waits until no one else holds this lock, and holds it meanwhile.

  The system takes it back from a process that is killed.

  Args:
    path: of an empty file, which is made and stays.
    progress: told if there is something to wait for.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      progress(f"{path.with_suffix('')} is in the hands of another process; "
               "waiting for it")
      fcntl.flock(file, fcntl.LOCK_EX)
    yield
