"""Workers: one command after another, shared programs, an orderly end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align_jax.errors import InputError
from align_jax.evals import workers
from align_jax.evals.workers import Workers


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  folder = tmp_path_factory.mktemp("study")
  with Workers(2, folder) as run:
    run.folder = folder
    yield run


def test_a_worker_gives_what_commands_print(two):
  for _ in range(3):
    assert two(["align-jax", "--help"]).startswith("usage: align-jax VERB")


def test_a_failure_names_the_command_and_where_its_words_are(two):
  with pytest.raises(RuntimeError) as error:
    two(["align-jax", "trian", "--config", "x"])
  said, log = str(error.value).split("; see ")
  assert said == "align-jax trian --config x failed with code 2"
  assert log.startswith(f"{two.folder}/log/worker_")
  assert "did you mean 'train'" in Path(log).read_text()
  # Arguments that argparse refuses are a failure too, and the worker stays.
  with pytest.raises(RuntimeError, match="--nonsense failed with code 2"):
    two(["align-jax", "study", "--nonsense"])
  assert two(["align-jax", "--help"])


def test_each_has_its_share_of_the_processors(two):
  if not hasattr(os, "sched_getaffinity"):
    pytest.skip("this system has no affinities")
  shares = [os.sched_getaffinity(w.process.pid) for w in two._all]
  assert not shares[0] & shares[1]
  assert shares[0] | shares[1] == os.sched_getaffinity(0)


def test_more_jobs_than_processors_are_refused(tmp_path):
  with pytest.raises(InputError, match="10000 jobs at a time: there are"):
    Workers(10_000, tmp_path)
  with pytest.raises(InputError, match="0 jobs"):
    Workers(0, tmp_path)


def test_a_worker_that_is_killed_is_a_failure(tmp_path):
  with Workers(1, tmp_path) as run:
    run._all[0].process.kill()
    with pytest.raises(RuntimeError, match=r"the end of its process \(-9\)"):
      run(["align-jax", "--help"])


def test_a_worker_ends_with_whoever_started_it(tmp_path):
  code = ("import sys, time; from align_jax.evals.workers import Workers; "
          "w = Workers(1, sys.argv[1]); print(w._all[0].process.pid, "
          "flush=True); w(['align-jax', '--help']); time.sleep(600)")
  parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)],
                            stdout=subprocess.PIPE, text=True)
  worker = int(parent.stdout.readline())
  parent.send_signal(signal.SIGKILL)
  parent.wait()
  until = time.monotonic() + 60
  while _alive(worker) and time.monotonic() < until:
    time.sleep(0.05)
  assert not _alive(worker)


def _alive(pid: int) -> bool:
  try:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
      return stat.read().split()[2] != "Z"
  except OSError:
    return False


_TRAIN = """
import sys
from align_jax.cli import main as cli
def main(argv):
  import jax
  import jax.numpy as jnp
  jax.jit(lambda x: jnp.sin(x) @ x + 3)(jnp.ones((4, 4))).block_until_ready()
  return 0
cli.main = main
from align_jax.evals.workers import serve
serve(sys.stdin, sys.stdout)
"""


def test_what_one_compiled_another_finds(tmp_path):
  env = os.environ | workers._shared_cache(tmp_path)
  made = []
  for _ in range(2):
    with subprocess.Popen([sys.executable, "-c", _TRAIN], env=env, text=True,
                          stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as worker:
      worker.stdin.write("[]\n")
      worker.stdin.flush()
      assert '"code": 0' in worker.stdout.readline()
    made.append(sorted(p.name for p in (tmp_path / "compiled").iterdir()
                       if "atime" not in p.name))
  assert made[0] and made[0] == made[1]
