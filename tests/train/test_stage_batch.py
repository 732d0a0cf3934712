"""Stages whose batches differ: other rows, lengths and templates."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from align_jax.config import load_config
from align_jax.parallel.mesh import make_mesh
from align_jax.train.ahead import abstract_stage
from align_jax.train.job import assemble
from align_jax.train.loop import train
from align_jax.validate import validate
from tests.train import tiny_run


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  path = tiny_run.make(tmp_path_factory.mktemp("tiny"))
  found = validate(load_config(str(path), ["mesh.data=2"]))
  first = dataclasses.replace(found.stages[0], batch=dict(
      rows=4, row_length=40, images_per_row=3, labels_per_row=9, pack=False,
      template="plain"))
  second = dataclasses.replace(found.stages[0], name="second")
  return dataclasses.replace(found, stages=(first, second))


def test_data_objective_and_plan_follow_the_stage(config, tmp_path):
  job = assemble(config, tmp_path)
  first, second = config.stages
  batches = {s.name: next(job.batches(s)) for s in config.stages}
  assert batches["align"]["tokens"].shape == (4, 40)
  assert batches["align"]["images"].shape[:2] == (4, 3)
  assert batches["second"]["tokens"].shape == (8, 56)
  assert batches["second"]["images"].shape[:2] == (8, 2)
  # "plain" writes fewer tokens around a turn than the chat template.
  ends = [int(np.asarray(b["segment_ids"] == 1).sum(1).min())
          for b in batches.values()]
  assert ends[0] < ends[1]
  assert job.objective("next_token", first).budget == 9
  assert job.objective("next_token", second).budget == 24
  mesh = make_mesh(config.mesh, jax.devices()[:2])
  for stage in config.stages:
    planned = abstract_stage(config, stage, mesh)[2]
    assert {k: v.shape for k, v in planned.items() if k != "extras"} == {
        k: v.shape for k, v in batches[stage.name].items() if k != "extras"}


@pytest.mark.slow
def test_a_stage_that_measures_says_so_in_its_metrics(config, tmp_path):
  stage = dataclasses.replace(config.stages[1], steps=3, measure=True,
                              accumulate=2)
  train(dataclasses.replace(config, stages=(stage,)), tmp_path, show=False)
  lines = [json.loads(line) for line in
           (tmp_path / "metrics.jsonl").read_text().splitlines()]
  # Of so few images no ten are nearest.
  assert all(line["measure/mutual_knn"] == 0 for line in lines)
  for name in ("tacs", "gap", "norm_ratio", "cka", "mir"):
    values = [line[f"measure/{name}"] for line in lines]
    assert all(np.isfinite(values)) and len(set(values)) == 3, name
