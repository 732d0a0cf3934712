"""Which parameters a pattern trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from align_jax.config import MeshConfig
from align_jax.errors import InputError
from align_jax.parallel.mesh import make_mesh
from align_jax.train.manifest import trained_size
from align_jax.train.select import (
  base,
  cut,
  flatten,
  merge,
  split,
  trainables,
  unflatten,
)


@pytest.fixture
def params() -> dict[str, jax.Array]:
  mesh = make_mesh(MeshConfig())
  tree = {
      "connector": {"w_cd": jnp.ones((2, 3)), "b_d": jnp.ones(3)},
      "tower": {"layers": {"q_ck": jnp.arange(24.).reshape(4, 2, 3)},
                "position_pc": jnp.ones((5, 2))},
      "logit_scale": jnp.ones([])}
  return {k: jax.device_put(v, NamedSharding(mesh, PartitionSpec()))
          for k, v in flatten(tree).items()}


def test_paths_round_trip(params):
  assert sorted(params) == [
      "connector/b_d", "connector/w_cd", "logit_scale",
      "tower/layers/q_ck", "tower/position_pc"]
  assert flatten(unflatten(params)) == params


def test_the_last_pattern_sets_the_rate(params):
  assert trainables(params, {"*": 1.0, "connector/*": 2.0,
                             "logit_scale": 3.0}) == {
      "connector/b_d": 2.0, "connector/w_cd": 2.0, "logit_scale": 3.0,
      "tower/layers/q_ck": 1.0, "tower/position_pc": 1.0}


@pytest.mark.parametrize("pattern,key", [
    ("tower/layers[-1]/*", "tower/layers[3:4]/q_ck"),
    ("tower/layers[1:3]/q_ck", "tower/layers[1:3]/q_ck"),
    ("*/layers[-2:]/*", "tower/layers[2:4]/q_ck"),
    ("tower/layers[0:4]/*", "tower/layers/q_ck"),
])
def test_layers_are_cut(params, pattern, key):
  assert trainables(params, {pattern: 1.0}) == {key: 1.0}
  assert base(key) == "tower/layers/q_ck"


def test_split_and_merge(params):
  keys = trainables(params, {"connector/*": 1.0, "tower/layers[-1]/*": 1.0})
  trained, frozen = split(params, keys)
  assert cut("tower/layers[3:4]/q_ck") == slice(3, 4)
  np.testing.assert_array_equal(
      trained["tower/layers[3:4]/q_ck"], params["tower/layers/q_ck"][3:])
  assert "connector/w_cd" not in frozen and "tower/layers/q_ck" in frozen
  moved = merge({k: v + 1 for k, v in trained.items()}, frozen)
  stack = np.asarray(params["tower/layers/q_ck"])
  np.testing.assert_array_equal(moved["tower/layers/q_ck"][:3], stack[:3])
  np.testing.assert_array_equal(moved["tower/layers/q_ck"][3], stack[3] + 1)
  np.testing.assert_array_equal(moved["connector/b_d"], 2 * np.ones(3))
  assert sorted(moved) == sorted(params)


def test_patterns_that_name_nothing(params):
  with pytest.raises(InputError) as raised:
    trainables(params, {"conector/*": 1.0, "tower/layers[4]/*": 1.0,
                        "tower/layers[2:2]/*": 1.0})
  text = str(raised.value)
  assert "'conector/*' names no parameter; did you mean 'connector/*'" in text
  assert "has layers 0 to 3" in text and "empty range" in text


def test_two_cuts_of_one_stack_are_refused(params):
  with pytest.raises(InputError, match="otherwise than an earlier"):
    trainables(params, {"tower/layers[-1]/*": 1.0, "tower/*": 1.0})


def test_trained_parameters_of_several_stages_count_once():
  params = {"a/layers/w_dd": np.zeros((4, 5, 2)), "b/w_d": np.zeros(3),
            "scale": np.zeros(())}
  assert trained_size(params, ["b/w_d", "scale"]) == 4
  cuts = ["a/layers[2:4]/w_dd", "a/layers[3:4]/w_dd"]
  assert trained_size(params, cuts) == 20
  assert trained_size(params, ["a/layers/w_dd", "a/layers[0:1]/w_dd"]) == 40
