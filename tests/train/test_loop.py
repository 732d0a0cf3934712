"""A run: stages, checkpoints, resume, guards, audit, metrics, manifest."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from align_jax.config import MeshConfig, plain
from align_jax.data import BadSample
from align_jax.data.quarantine import Quarantine
from align_jax.errors import InputError
from align_jax.train.audit import AuditError
from align_jax.train.checkpoint import Checkpoints
from align_jax.train.compilations import RecompiledError
from align_jax.train.loop import result_line, train
from align_jax.train.manifest import check_same_run
from align_jax.train.watch import NotFiniteError
from tests.train import toy

ROOT = Path(__file__).parents[2]


def final(workdir: Path) -> dict[str, np.ndarray]:
  """The arrays of a run's last checkpoint, and its frozen ones."""
  from orbax.checkpoint import v1 as ocp
  steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir()
                 if p.name.isdigit())
  found = {}
  folder = workdir / "checkpoints" / str(steps[-1])
  loaded = ocp.load_checkpointables(folder)
  for part in ("trained", "opt_state"):
    found |= {f"{part}/{k}": np.asarray(v) for k, v in loaded[part].items()}
  return found


def lines(workdir: Path) -> list[dict]:
  return [json.loads(line) for line in
          (workdir / "metrics.jsonl").read_text().splitlines()]


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
  assert a.keys() == b.keys()
  for key in a:
    np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nothing interrupted, and its workdir."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  config = toy.config()
  result = train(config, workdir, toy.job(config), show=False)
  return workdir, result


def test_a_whole_run(whole):
  workdir, result = whole
  assert result["finished"] and result["steps"] == 12
  assert result["compilations"] == {"first": 1, "second": 1}
  assert "trained toy: 12 steps in 0:" in result_line(result)
  log = lines(workdir)
  assert [line["step"] for line in log] == list(range(1, 13))
  assert log[-1]["loss"] < log[0]["loss"]
  assert {"loss", "objective/ce", "supervised_tokens", "tokens_per_second",
          "images_per_second", "step_seconds", "input_wait_seconds",
          "host_memory_gib", "grad_norm", "grad_norm/connector",
          "grad_norm/tower", "learning_rate/connector/*",
          "learning_rate/tower/layers[-1]/*", "quarantined",
          "empty_image_slots", "compilations"} <= log[-1].keys()
  assert list((workdir / "tensorboard").iterdir())
  kept = sorted(p.name for p in (workdir / "checkpoints").iterdir())
  assert kept == ["10", "12"] or kept == ["12", "8"]
  audit = json.loads((workdir / "audit" / "1.json").read_text())
  assert "tower/layers[2:3]/q_dk" in audit["moved"]
  assert "tower/layers/q_dk" in audit["frozen"] and not audit["idle"]


def test_quarantined_counts_all_processes(tmp_path):
  for process, names in enumerate(("ab", "bc")):
    kept = Quarantine(tmp_path / f"quarantine.{process}.jsonl")
    for name in names:
      kept.add(BadSample(f"{name}.json:1", "no image"), "chats")
  train(toy.config(), tmp_path, toy.job(toy.config()), show=False)
  assert lines(tmp_path)[-1]["quarantined"] == 3


def test_the_manifest(whole):
  workdir, result = whole
  about = json.loads((workdir / "manifest.json").read_text())
  assert about["versions"]["jax"] == jax.__version__
  assert about["steps"] == 12 and about["devices"] == 8
  assert about["trained_parameters"] == result["trained_parameters"]
  assert about["provenance"]["connector/w_dd"] == "random"
  assert any("connector/w_dd" in line for line in about["partition"])
  assert "commit" in about and about["seed"] == 0 and about["device"]
  assert [s["commit"] for s in about["starts"]] == [about["commit"]]
  assert result["commits_differ"] is False


def test_a_finished_run_says_so(whole):
  workdir, result = whole
  again = train(toy.config(), workdir, show=False)
  assert again == result | {"resumed": True}


def test_another_config_is_refused(whole):
  workdir, _ = whole
  config = toy.config(seed=1, log_every=5, mesh=MeshConfig(data=2, fsdp=2))
  with pytest.raises(InputError) as raised:
    train(config, workdir, show=False)
  assert str(raised.value).splitlines()[1:] == ["  seed: saved 0, given 1"]


def test_a_run_older_than_a_field_goes_on(tmp_path):
  config = toy.config()
  saved = plain(config)
  del saved["model"]["prompt_tokens"], saved["stages"][0]["moment_dtype"]
  (tmp_path / "config.json").write_text(json.dumps(saved))
  check_same_run(tmp_path, config)
  saved["stages"][0]["gone_since"] = 1
  (tmp_path / "config.json").write_text(json.dumps(saved))
  with pytest.raises(InputError, match="gone_since: saved 1"):
    check_same_run(tmp_path, config)


@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_is_no_workdir(kind):
  with pytest.raises(InputError, match="bucket.*Mount the bucket"):
    train(toy.config(), kind("gs://bucket/runs/one"), show=False)


class Interrupting(toy.Rows):
  """Sends this process a signal while batch `at` is fetched."""

  def __init__(self, *args, when=-1, **options):
    super().__init__(*args, **options)
    self.when = when

  def __next__(self):
    if self.at == self.when:
      os.kill(os.getpid(), signal.SIGTERM)
    return super().__next__()


@pytest.mark.parametrize("stage,when", [(0, 3), (1, 2)])
def test_stopped_and_resumed_is_never_stopped(whole, tmp_path, stage, when):
  config = toy.config()
  workdir = tmp_path / "run"
  job = toy.job(config)
  plain = job.batches

  def batches(given):
    made = plain(given)
    if config.stages.index(given) != stage:
      return made
    return Interrupting(made.rows, made.seed, when=when)

  first = train(config, workdir, dataclasses.replace(job, batches=batches),
                show=False)
  assert not first["finished"] and first["steps"] == 6 * stage + when + 1
  taken: list[int] = []
  second = train(config, workdir, toy.job(config, taken=taken), show=False)
  assert second["finished"] and taken[0] == when + 1
  same(final(workdir), final(whole[0]))
  assert [line["loss"] for line in lines(workdir)] == [
      line["loss"] for line in lines(whole[0])]


def test_the_manifest_lists_every_start(tmp_path, monkeypatch):
  config, workdir = toy.config(), tmp_path / "run"
  job = toy.job(config)
  plain = job.batches
  monkeypatch.setattr("align_jax.train.manifest.commit", lambda: "first")
  train(config, workdir, dataclasses.replace(
      job, batches=lambda s: Interrupting(plain(s).rows, when=1)), show=False)
  monkeypatch.setattr("align_jax.train.manifest.commit", lambda: "second")
  monkeypatch.setattr("sys.argv", ["again"])
  result = train(config, workdir, toy.job(config), show=False)
  about = json.loads((workdir / "manifest.json").read_text())
  assert about["commit"] == "first" and about["command"] != ["again"]
  assert [s["commit"] for s in about["starts"]] == ["first", "second"]
  assert about["starts"][1]["command"] == ["again"]
  assert about["starts"][1]["versions"]["jax"] == jax.__version__
  assert result["commits_differ"] and about["steps"] == 12


def test_resumed_on_another_mesh(whole, tmp_path):
  config = toy.config(mesh=MeshConfig(data=2, fsdp=2, tensor=2))
  workdir = tmp_path / "run"
  job = toy.job(config)
  plain = job.batches
  stopping = dataclasses.replace(
      job, batches=lambda s: Interrupting(plain(s).rows, plain(s).seed, when=4))
  train(config, workdir, stopping, show=False)
  other = toy.config(mesh=MeshConfig(data=1, fsdp=4, tensor=2))
  result = train(other, workdir, toy.job(other), show=False)
  assert result["finished"]
  expected = final(whole[0])
  for key, found in final(workdir).items():
    if key.startswith("trained"):
      np.testing.assert_allclose(found, expected[key], atol=2e-5, err_msg=key)


def test_weights_files_are_referred_to(tmp_path):
  weights = tmp_path / "weights.bin"
  weights.write_bytes(b"these")
  config = toy.config()
  workdir = tmp_path / "run"
  job = toy.job(config, weights=str(weights))
  plain = job.batches
  stopping = dataclasses.replace(
      job, batches=lambda s: Interrupting(plain(s).rows, when=2))
  train(config, workdir, stopping, show=False)
  from orbax.checkpoint import v1 as ocp
  kept = ocp.load(workdir / "frozen" / "0")
  assert sorted(kept) == ["tower/layers/bias_k", "tower/layers/q_dk"]
  weights.write_bytes(b"those")
  with pytest.raises(InputError, match="weights changed since"):
    train(config, workdir, toy.job(config, weights=str(weights)), show=False)


def test_frozen_parts_that_came_back_otherwise_are_refused(tmp_path):
  weights = tmp_path / "weights.bin"
  weights.write_bytes(b"these")
  config = toy.config()
  workdir = tmp_path / "run"
  job = toy.job(config, weights=str(weights))
  plain = job.batches
  stopping = dataclasses.replace(
      job, batches=lambda s: Interrupting(plain(s).rows, when=2))
  train(config, workdir, stopping, show=False)

  def init():
    tree, origins = job.init()
    tree["decoder"]["embed_vd"] = tree["decoder"]["embed_vd"] * 2
    return tree, origins

  with pytest.raises(AuditError, match="decoder/embed_vd"):
    train(config, workdir, dataclasses.replace(job, init=init), show=False)


def test_not_finite_saves_the_batch(tmp_path):
  config = toy.config(save_every=3)
  with pytest.raises(NotFiniteError, match="bad_batch_5.npz") as raised:
    train(config, tmp_path / "run", toy.job(config, poison=4), show=False)
  assert "stage 'first', step 5" in str(raised.value)
  saved = np.load(tmp_path / "run" / "bad_batch_5.npz")
  assert np.isnan(saved["loss_weights"][0, 0])
  # The data goes on with the same batch: what failed is not passed over.
  with pytest.raises(NotFiniteError, match="bad_batch_5.npz"):
    train(config, tmp_path / "run", toy.job(config, poison=4), show=False)


@pytest.mark.parametrize("lost", [False, True])
def test_a_failing_run_closes_all(tmp_path, monkeypatch, lost):
  """The save under way is waited for; its error hides no other."""
  closed = []

  class Breaking(toy.Rows):

    def __next__(self):
      if self.at == 4:
        raise OSError("the disk is gone")
      return super().__next__()

    def close(self):
      closed.append("batches")

  wait = Checkpoints.wait

  def waited(self):
    wait(self)
    if lost and closed:
      raise RuntimeError("not saved")

  monkeypatch.setattr(Checkpoints, "wait", waited)
  config = toy.config(save_every=3)
  job = toy.job(config)
  plain = job.batches
  breaking = dataclasses.replace(
      job, batches=lambda s: Breaking(plain(s).rows, plain(s).seed))
  with pytest.raises(OSError, match="the disk is gone") as raised:
    train(config, tmp_path / "run", breaking, show=False)
  assert closed == ["batches"]
  assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [
      "3"]
  notes = getattr(raised.value, "__notes__", [])
  assert [("not saved" in note) for note in notes] == [True] * lost


def test_a_save_never_passes_over_a_bad_batch(tmp_path):
  config = toy.config(save_every=5)
  with pytest.raises(NotFiniteError):
    train(config, tmp_path / "run", toy.job(config, poison=4), show=False)
  assert not [p for p in (tmp_path / "run" / "checkpoints").iterdir()
              if p.name.isdigit()]


def test_a_second_compilation_is_refused(tmp_path):
  config = toy.config()
  job = toy.job(config)

  class Longer(toy.Rows):

    def __next__(self):
      batch = super().__next__()
      return {k: v[:, :9] if self.at == 3 and v.shape[1] > 2 else v
              for k, v in batch.items()}

  plain = job.batches
  job = dataclasses.replace(
      job, batches=lambda s: Longer(plain(s).rows, plain(s).seed))
  with pytest.raises(RecompiledError, match=r"targets: \(\(8, 9\), 'int32'\)"):
    train(config, tmp_path / "run", job, show=False)


def test_patterns_are_checked_before_training(tmp_path):
  config = toy.config()
  stages = (config.stages[0],
            dataclasses.replace(config.stages[1], train={"conector/*": 1.0}))
  config = dataclasses.replace(config, stages=stages)
  with pytest.raises(InputError, match="stage 'second'.*\n.*connector"):
    train(config, tmp_path / "run", toy.job(config), show=False)


KILLED = """
import os, sys
sys.path.insert(0, {root!r})
os.environ["JAX_PLATFORMS"] = "cpu"
# XLA_FLAGS stay those of the run that goes on: other ones may round otherwise.
import jax
jax.config.update("jax_default_matmul_precision", "highest")
from tests.train import toy
from align_jax.train.checkpoint import Checkpoints
from align_jax.train.loop import train
plain = Checkpoints.save
def save(self, step, state, meta):
  plain(self, step, state, meta)
  if step == {step}:
    os.kill(os.getpid(), 9)
Checkpoints.save = save
config = toy.config()
train(config, sys.argv[1], toy.job(config), show=False)
"""


@pytest.mark.parametrize("step", [8])
def test_killed_in_the_middle_of_a_save(whole, tmp_path, step):
  workdir = tmp_path / "run"
  done = subprocess.run(
      [sys.executable, "-c", KILLED.format(root=str(ROOT), step=step),
       str(workdir)], timeout=200)
  assert done.returncode == -signal.SIGKILL
  steps = [p.name for p in (workdir / "checkpoints").iterdir()]
  assert "6" in steps and str(step) not in steps
  config = toy.config()
  taken: list[int] = []
  result = train(config, workdir, toy.job(config, taken=taken), show=False)
  assert result["finished"] and taken == [0, 1, 2, 3, 4, 5]
  same(final(workdir), final(whole[0]))
  assert [line["loss"] for line in lines(workdir)] == [
      line["loss"] for line in lines(whole[0])]
  assert not [p for p in (workdir / "checkpoints").iterdir()
              if not p.name.isdigit()]
