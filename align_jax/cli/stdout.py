"""Standard output is for results; what libraries print there goes elsewhere."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def kept_clean() -> Iterator[None]:
  """Sends what is written to standard output to standard error meanwhile.

  By file descriptor too, since compiled libraries (Gloo, at the start of
  several processes) do not go through `sys.stdout`.
  """
  sys.stdout.flush()
  kept = os.dup(1)
  try:
    os.dup2(2, 1)
    with contextlib.redirect_stdout(sys.stderr):
      yield
  finally:
    os.dup2(kept, 1)
    os.close(kept)
