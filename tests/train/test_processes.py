"""Several processes on one machine, and what the launch scripts print."""

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from align_jax.cli.main import main
from align_jax.train.stop import Stop
from tests.train import tiny_run

ROOT = Path(__file__).parents[2]
LOCAL = str(ROOT / "launch" / "local.sh")
POD = str(ROOT / "launch" / "tpu_pod.sh")


def environment(**more: str) -> dict[str, str]:
  kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  return kept | {"JAX_PLATFORMS": "cpu", "ALIGN_JAX_CPU_DEVICES": "1",
                 "PYTHONPATH": str(ROOT),
                 # Two cold starts: compiling is all that takes long.
                 "XLA_FLAGS": "--xla_backend_optimization_level=0",
                 "JAX_DEFAULT_MATMUL_PRECISION": "highest"} | more


def losses(workdir: Path) -> list[float]:
  return [json.loads(line)["loss"] for line in
          (workdir / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_have_the_losses_of_one(tmp_path):
  config = str(tiny_run.make(tmp_path))
  command = ["train", "--config", config, "--workdir"]
  assert main([*command, str(tmp_path / "one")]) == 0
  done = subprocess.run(
      [LOCAL, "2", *command, str(tmp_path / "two"), "--json"],
      env=environment(), capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout)["steps"] == 10
  np.testing.assert_allclose(losses(tmp_path / "two"),
                             losses(tmp_path / "one"), rtol=1e-5)
  about = json.loads((tmp_path / "two" / "manifest.json").read_text())
  assert about["processes"] == 2


@pytest.mark.slow
def test_asked_to_stop_all_save_the_same_step(tmp_path, monkeypatch):
  """SIGTERM to two processes; one process then goes on with their run."""
  config = str(tiny_run.make(tmp_path))
  workdir = tmp_path / "run"
  command = ["train", "--config", config, "--workdir", str(workdir),
             "--config.stages[0].steps=5000"]
  running = subprocess.Popen(
      [LOCAL, "2", *command, "--config.save_every=5000"], env=environment())
  log = workdir / "metrics.jsonl"
  start = time.monotonic()
  while not log.exists() or len(log.read_text().splitlines()) < 5:
    assert running.poll() is None and time.monotonic() - start < 200
    time.sleep(0.5)
  running.send_signal(signal.SIGTERM)
  assert running.wait(timeout=100) == 1
  before = losses(workdir)
  (saved,) = [int(p.name) for p in (workdir / "checkpoints").iterdir()]
  assert saved == len(before)
  monkeypatch.setattr(Stop, "requested",
                      lambda self, step: step == saved + 3)
  assert main(command) == 1
  assert losses(workdir)[:saved] == before
  assert len(losses(workdir)) == saved + 3


def test_a_failing_process_ends_all(tmp_path):
  start = time.monotonic()
  done = subprocess.run(
      [LOCAL, "2", "train", "--config", "no_such", "--workdir", str(tmp_path)],
      env=environment(), capture_output=True, text=True, timeout=120)
  assert done.returncode == 2
  assert "no config 'no_such'" in done.stderr
  assert time.monotonic() - start < 100


def test_ctrl_c_ends_all(tmp_path):
  waiting = tmp_path / "python"
  waiting.write_text(f"""#!/bin/sh
touch {tmp_path}/started_$ALIGN_JAX_PROCESS_ID
exec sleep 60
""")
  waiting.chmod(0o755)
  # What is ignored at its start a shell cannot trap.
  running = subprocess.Popen(
      [LOCAL, "2", "train"],
      env=environment(PYTHON=str(waiting), ALIGN_JAX_PORT="1"),
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
  start = time.monotonic()
  while len(list(tmp_path.glob("started_*"))) < 2:
    assert time.monotonic() - start < 20
    time.sleep(0.1)
  time.sleep(0.5)  # the trap is set after the last process was started
  running.send_signal(signal.SIGINT)
  assert running.wait(timeout=20) == 128 + signal.SIGTERM


def test_wants_a_number_and_a_verb():
  done = subprocess.run([LOCAL, "two"], capture_output=True, text=True)
  assert done.returncode == 2 and "local.sh N VERB" in done.stderr


def test_pod_prints_its_command():
  done = subprocess.run(
      [POD, "--tpu", "slice", "--zone", "z-1", "--project", "p", "--user", "u",
       "--folder", "code/align jax", "--dry-run", "--", "train", "--config",
       "mini/clip:a b", "--workdir", "/mnt/shared/run"],
      capture_output=True, text=True, check=True)
  words = shlex.split(done.stdout)
  assert words[:12] == [
      "gcloud", "compute", "tpus", "tpu-vm", "ssh", "u@slice", "--zone",
      "z-1", "--project", "p", "--worker=all", "--command"]
  remote = shlex.split(words[12])
  assert remote[:4] == ["cd", "code/align jax", "&&", "ALIGN_JAX_POD=1"]
  assert remote[5:] == ["train", "--config", "mini/clip:a b", "--workdir",
                        "/mnt/shared/run"]


@pytest.mark.parametrize("given", [[], ["--tpu", "a"], ["--tup", "a"]])
def test_pod_explains_itself(given):
  done = subprocess.run([POD, *given], capture_output=True, text=True)
  assert done.returncode == 2 and "--dry-run" in done.stderr
