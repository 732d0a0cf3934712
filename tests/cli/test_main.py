"""What all verbs have in common."""

import subprocess
import sys


def test_a_reader_that_has_enough_is_no_error():
  verb = subprocess.Popen(
      [sys.executable, "-m", "align_jax.cli.main", "convert", "supported"],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  verb.stdout.close()
  assert verb.stderr.read() == b"" and verb.wait() == 0
