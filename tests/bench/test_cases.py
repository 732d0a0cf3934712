"""Benchmarks of whole steps, at a size where only their form matters."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from align_jax.bench import (
  Options,
  cases,
  first_step,
  generate,
  loader,
  sea,
  speed,
  train_step,
)
from align_jax.bench import step as step_bench
from align_jax.bench.cases import made_up, ready
from align_jax.bench.versus_torch import TrainStep, inputs, llava
from align_jax.build import build, param_shapes
from align_jax.config import ConnectorConfig, PartConfig
from align_jax.errors import InputError
from align_jax.parallel.mesh import make_mesh
from align_jax.plan.chips import CHIPS

torch = pytest.importorskip("torch")
SLOW = pytest.mark.slow


def tiny(vocab: int = 61, dtype: str = "float32"):
  config = cases.tiny_llava(vocab, dtype)
  tower = PartConfig(kind="clip", layer=-2, config=dict(
      image_size=16, patch_size=8, width=16, layers=2, heads=2, mlp_width=24))
  decoder = PartConfig(kind="llama", config=dict(
      vocab_size=vocab, width=16, layers=2, heads=2, mlp_width=24,
      tied_head=False))
  return dataclasses.replace(
      config, model=dataclasses.replace(
          config.model, tower=tower, decoder=decoder),
      data=dataclasses.replace(
          config.data, rows=2, row_length=16, images_per_row=2,
          labels_per_row=4))


@pytest.fixture(scope="module")
def parts():
  return build(tiny().model)


def test_made_up_rows_are_full_and_their_last_words_labelled(parts):
  config = tiny()
  batch = made_up(config, config.stages[0], parts)
  np.testing.assert_array_equal(batch["visual_index"][0],
                                [*range(8), *[-1] * 8])
  np.testing.assert_array_equal(batch["loss_weights"][1],
                                [0] * 11 + [1] * 4 + [0])
  np.testing.assert_array_equal(batch["targets"][:, :-1],
                                batch["tokens"][:, 1:])
  assert (batch["segment_ids"] == 1).all() and batch["images"].any()


def test_rows_without_room_are_refused(parts):
  config = tiny()
  short = dataclasses.replace(config, data=dataclasses.replace(
      config.data, row_length=8))
  with pytest.raises(InputError, match="no room for 2 images of 4 tokens"):
    made_up(short, short.stages[0], parts)


def test_theirs_gets_the_same_words_labels_and_pixels(parts):
  config = tiny()
  batch = made_up(config, config.stages[0], parts)
  theirs = inputs(batch, parts, torch)
  labels = theirs["labels"].numpy()
  assert (labels >= 0).sum() == batch["loss_weights"].sum()
  # Theirs predicts label i from token i - 1.
  row, place = np.nonzero(batch["loss_weights"])
  np.testing.assert_array_equal(labels[row, place + 1],
                                batch["targets"][row, place])
  assert (theirs["input_ids"] == 60).sum() == 2 * 8
  assert theirs["pixel_values"].shape == (4, 3, 16, 16)


def test_theirs_has_as_many_parameters(parts):
  config = tiny()
  shapes = param_shapes(parts, make_mesh(config.mesh))
  ours = sum(math.prod(s.shape) for s in shapes.values())
  theirs = sum(p.numel() for p in llava(config, parts).parameters())
  assert ours == theirs


def test_what_has_no_counterpart_is_refused(parts):
  config = tiny()
  other = dataclasses.replace(config, model=dataclasses.replace(
      config.model, connector=ConnectorConfig("align")))
  with pytest.raises(InputError, match="not of connector 'align'"):
    llava(other, parts)


def test_their_step_learns(parts):
  config = tiny()
  batch = made_up(config, config.stages[0], parts)
  step = TrainStep(llava(config, parts), config, batch, parts)
  losses = [step() for _ in range(5)]
  assert np.isfinite(losses).all() and losses[-1] < losses[0]


def _figures(run, **options):
  return {f.key: f for f in run(Options(**{"rounds": 2} | options))}


def test_a_step_of_a_config_says_what_it_costs():
  found = _figures(step_bench.run, config=tiny(), synthetic=True,
                   rounds=1)
  assert {"compile_seconds", "step_seconds", "tokens_per_second",
          "images_per_second", "share_of_matmul"} <= set(found)
  assert "input_wait_seconds" not in found  # nothing was read
  tokens = found["tokens_per_second"].value
  assert tokens * found["step_seconds"].value == pytest.approx(32)
  assert "recomputation" in found["share_of_matmul"].flops
  assert "B=2 L=16 N=2 M=4 T=4" in found["step_seconds"].shapes


def test_a_step_is_judged_by_the_devices_of_its_mesh_alone(monkeypatch):
  monkeypatch.setattr(speed, "chip_named", lambda kind: CHIPS["v5e"])
  found = _figures(step_bench.run, config=tiny(), synthetic=True, rounds=1)
  assert jax.device_count() == 8
  assert "mesh data1, 1 of 8 devices" in found["mfu"].shapes
  flops = found["share_of_matmul"].parts["model_GFLOP"] * 1e9
  assert found["mfu"].value == pytest.approx(
      flops / found["step_seconds"].value / CHIPS["v5e"].peak)


def test_a_matrix_product_counts_once_for_each_device(monkeypatch):
  """But on a processor, whose virtual devices share it."""
  clock = iter(range(100))
  monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
  assert speed.measured_peak("float32", 3, size=8) == 2 * 8 ** 3
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert speed.measured_peak("float32", 3, size=8) == 3 * 2 * 8 ** 3


def test_h1_is_a_share_of_its_mesh_with_quartiles(monkeypatch):
  monkeypatch.setattr(train_step, "large_llava", lambda width: tiny())
  monkeypatch.setattr(speed, "chip_named", lambda kind: CHIPS["v5e"])
  found = next(train_step._large(Options(rounds=3)))
  assert found.key == "h1" and found.rounds == 3
  assert found.spread[0] <= found.value <= found.spread[1]
  case = ready(tiny())
  assert found.value == pytest.approx(
      speed.flops_of(case) / found.parts["mlp_seconds"] / CHIPS["v5e"].peak)


def test_a_step_needs_a_config():
  with pytest.raises(InputError, match="--config"):
    _figures(step_bench.run)


@SLOW
def test_the_first_step_is_the_only_one_that_compiles(monkeypatch):
  monkeypatch.setattr(first_step, "MIXED", 6)
  found = _figures(first_step.run, config=tiny())
  assert found["c10_recompilations"].value == 0
  assert found["first_step_seconds"].value > 0


@SLOW
def test_beside_transformers(monkeypatch):
  monkeypatch.setattr(train_step, "tiny_llava", tiny)
  monkeypatch.setattr(train_step, "TINY", {(61, "float32"): ("c9", 9, 99)})
  found = _figures(train_step.run, versus="hf")
  assert found["c9"].value > 0 and found["c9"].rounds == 2


@SLOW
def test_generation_gives_the_same_tokens(monkeypatch):
  monkeypatch.setattr(generate, "SIZES", {"x": (61, 64, 2, 48, 0.0)})
  monkeypatch.setattr(generate, "NEW", 8)
  found = _figures(generate.run)
  assert found["c11_x_b1_same"].value == found["c11_x_b8_same"].value == 1


@SLOW
def test_the_loader_feeds_steps(monkeypatch):
  monkeypatch.setattr(loader, "tiny_llava", lambda v: dataclasses.replace(
      tiny(1000), data=dataclasses.replace(tiny().data, row_length=64)))
  monkeypatch.setattr(loader, "SAMPLES", 8)
  found = _figures(loader.run)
  assert found["c13"].value > 0


@SLOW
def test_sea_is_measured_with_pairs_to_contrast(monkeypatch):
  monkeypatch.setattr(sea, "PAIRS", (64, 8))
  found = _figures(sea.run)
  assert set(found) == {"c8_time", "c8_memory", "step_ratio"}
  assert min(f.value for f in found.values()) > 0
  case = sea.mini_step(True)
  _, metrics = case.step(case.state, case.batch)
  # About ln(N) of the 360 pairs of 40 images, some of equal words, and more
  # since the preset starts with cosines 14 times as large.
  assert 5 < float(metrics["objective/sea"]) < np.log(360) + 2


@SLOW
def test_a_ready_step_trains():
  case = ready(tiny())
  before = float(case())
  for _ in range(3):
    after = float(case())
  assert after < before
  assert case.mesh.size == 1 and jax.device_count() == 8
