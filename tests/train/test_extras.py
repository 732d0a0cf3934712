"""A user's connector and objective have fields of their own in the batch."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.config import Config, load_config
from align_jax.connectors import CONNECTORS
from align_jax.connectors.mlp import MLP
from align_jax.connectors.protocol import ConnectorOutput, Context
from align_jax.data import SOURCES
from align_jax.data.llava import Llava
from align_jax.errors import InputError
from align_jax.objectives import OBJECTIVES
from align_jax.objectives.next_token import NextToken
from align_jax.parallel.mesh import make_mesh
from align_jax.train.ahead import abstract_stage
from align_jax.train.job import assemble, declared
from align_jax.train.loop import train
from align_jax.validate import validate
from tests.train import tiny_run

SAMPLES = 4  # S, of a row


def field(config: Config, *shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((config.data.rows, SAMPLES, *shape), np.float32)


class Hinted(MLP):
  """Adds to each image's tokens the hint of the sample that it belongs to."""

  @classmethod
  def extras(cls, config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    return {"hint": field(config, 2)}

  def __call__(self, features: jax.Array, image_mask: jax.Array,
               context: Context) -> ConnectorOutput:
    hint = jnp.take_along_axis(
        context.extras["hint"],
        jnp.maximum(context.image_segment_ids - 1, 0)[..., None], axis=1)
    out = super().__call__(features, image_mask, context)
    bias = hint.mean(-1)[..., None, None].astype(out.tokens.dtype)
    return ConnectorOutput(out.tokens + bias, {"hint": hint})


class Scored(NextToken):
  """The sum of all scores, and of the hints that the connector found."""

  @classmethod
  def extras(cls, config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    return {"score": field(config)}

  def weight(self, batch: dict[str, Any],
             rng: jax.Array | None = None,
             layout: Any = None) -> jax.Array:
    return jnp.float32(1)

  def __call__(self, outputs: dict[str, Any], batch: dict[str, Any],
               rng: jax.Array, layout: Any) -> jax.Array:
    shown = batch["image_segment_ids"] > 0
    hints = outputs["connector_aux"]["hint"][..., 0]
    return batch["extras"]["score"].sum() + hints.sum(where=shown)


class Rated(Llava):
  """Sample i has the hint [i, -i] and the score i."""

  def __getitem__(self, index: int) -> dict[str, Any]:
    return super().__getitem__(index) | {"extras": {
        "hint": np.array([index, -index], np.float32),
        "score": np.float32(index)}}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
  monkeypatch.setitem(CONNECTORS._entries, "hinted", Hinted)
  monkeypatch.setitem(OBJECTIVES._entries, "scored", Scored)
  monkeypatch.setitem(SOURCES._entries, "rated", Rated)
  plain = validate(load_config(str(tiny_run.make(tmp_path)) + ":hinted"))
  source = dataclasses.replace(plain.data.sources["mixed"], kind="rated")
  stage = dataclasses.replace(
      plain.stages[0], steps=1, accumulate=1,
      objectives={"next_token": 1.0, "scored": 1.0})
  return dataclasses.replace(
      plain, stages=(stage,),
      data=dataclasses.replace(plain.data, sources={"mixed": source}))


def test_both_receive_their_field(config: Config, tmp_path: Path) -> None:
  job = assemble(config, tmp_path)
  batches = job.batches(config.stages[0])
  batch = next(batches)
  batches.close()
  extras, segments = batch["extras"], batch["image_segment_ids"]
  assert extras["hint"].shape == (8, SAMPLES, 2)
  # Packed rows keep them together: both of a sample say which one it is.
  np.testing.assert_array_equal(extras["hint"][..., 0], extras["score"])
  assert len(np.unique(extras["score"])) > 8 and segments.max() > 1

  result = train(config, tmp_path / "run", show=False)
  assert result["compilations"] == {"align": 1}
  first = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0]
  rows = np.arange(8)[:, None]  # an image's sample is its segment's
  hints = extras["score"][rows, segments - 1][segments > 0]
  assert json.loads(first)["objective/scored"] == (
      extras["score"].sum() + hints.sum())


def test_plan_has_their_shapes(config: Config) -> None:
  step, state, batch, _ = abstract_stage(config, config.stages[0],
                                         make_mesh(config.mesh))
  assert {k: v.shape for k, v in batch["extras"].items()} == {
      "hint": (8, SAMPLES, 2), "score": (8, SAMPLES)}
  step.lower(state, batch)


def test_one_name_means_one_thing(config: Config, monkeypatch) -> None:
  monkeypatch.setattr(Scored, "extras", classmethod(
      lambda cls, config: {"hint": field(config)}))
  with pytest.raises(InputError, match=r"extras\['hint'\] is declared twice"):
    declared(config, config.stages[0])
