"""The stack against a plain loop over its layers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.ops.stack import LayerStack, apart

DEPTH = 4


class Block(nn.Module):
  width: int = 6

  @nn.compact
  def __call__(self, x: jax.Array, shift: Any = 0.0, kind: Any = 1.0,
               cache: Any = 0.0) -> tuple[jax.Array, Any]:
    w_dd = self.param("w_dd", nn.initializers.normal(0.3),
                      (self.width, self.width))
    y = x + kind * jnp.tanh(x @ w_dd + shift) + cache
    return y, {"mean": y.mean()}


class Net(nn.Module):
  """Holds a stack made in `setup`, as the decoder does."""
  remat: str = "none"

  def setup(self) -> None:
    self.layers = LayerStack(Block(), DEPTH, self.remat)

  def __call__(self, x: jax.Array, *shared: Any, **how: Any) -> Any:
    return self.layers(x, *shared, **how)


def _loop(params: Any, x: Any, layers: Any, kinds: Any = None) -> list:
  hidden = [x]
  for n in layers:
    kind = 1.0 if kinds is None else kinds[n]
    x = x + kind * np.tanh(x @ np.asarray(params["w_dd"][n]) + 0.5)
    hidden.append(x)
  return hidden


@pytest.fixture(scope="module")
def made() -> tuple[Any, Any]:
  x = np.asarray(jax.random.normal(jax.random.key(1), (2, 6)))
  return Net().init(jax.random.key(0), x)["params"], x


def test_parameters_are_stacked_under_their_names(made: Any) -> None:
  params, _ = made
  assert params["layers"]["w_dd"].shape == (DEPTH, 6, 6)
  layers = np.asarray(params["layers"]["w_dd"])
  assert len({layer.tobytes() for layer in layers}) == DEPTH


@pytest.mark.parametrize("first,last", [(0, None), (0, -1), (1, 3), (2, 2)])
def test_ranges_of_layers(made: Any, first: int, last: int | None) -> None:
  params, x = made
  got, outs = Net().apply({"params": params}, x, 0.5, first=first, last=last)
  want = _loop(params["layers"], x, range(DEPTH)[first:last])
  np.testing.assert_allclose(got, want[-1], atol=1e-6)
  np.testing.assert_allclose(
      outs["mean"], [w.mean() for w in want[1:]], atol=1e-6)


@pytest.mark.parametrize("how", [{}, {"first": 1, "last": 3},
                                 {"return_all": True}])
def test_layers_taken_apart_give_the_same(made: Any, how: Any) -> None:
  params, x = made
  one_by_one = {"layers": apart(params["layers"])}
  scanned = {"cache": jnp.arange(4.0)}
  run = lambda p: Net().apply({"params": p}, x, 0.5, scanned=scanned, **how)
  assert "scan" not in str(jax.make_jaxpr(run)(one_by_one))
  for ours, want in zip(jax.tree.leaves(run(one_by_one)),
                        jax.tree.leaves(run(params)), strict=True):
    np.testing.assert_allclose(ours, want, atol=1e-6)


def test_layers_outside_the_range_are_not_computed(made: Any) -> None:
  params, x = made
  jaxpr = jax.make_jaxpr(
      lambda p: Net().apply({"params": p}, x, 0.5, first=1, last=3))(params)
  scans = [e for e in jaxpr.eqns if e.primitive.name == "scan"]
  assert [scan.params["length"] for scan in scans] == [2]


def test_every_hidden_state(made: Any) -> None:
  params, x = made
  got, _ = Net().apply({"params": params}, x, 0.5, return_all=True)
  want = _loop(params["layers"], x, range(DEPTH))
  np.testing.assert_allclose(got, np.stack(want), atol=1e-6)


def test_each_layer_gets_its_kind(made: Any) -> None:
  params, x = made
  kinds = np.array([1.0, 0.0, 2.0, 0.0], np.float32)
  got, _ = Net().apply({"params": params}, x, 0.5, scanned={"kind": kinds})
  want = _loop(params["layers"], x, range(DEPTH), kinds)
  np.testing.assert_allclose(got, want[-1], atol=1e-6)
  got, _ = Net().apply({"params": params}, x, 0.5, scanned={"kind": kinds},
                       first=2)
  want = _loop(params["layers"], x, range(2, DEPTH), kinds)
  np.testing.assert_allclose(got, want[-1], atol=1e-6)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_rematerialising_changes_no_gradient(made: Any, remat: str) -> None:
  params, x = made

  def grads(policy: str) -> Any:
    return jax.jit(jax.grad(lambda p: (
        Net(policy).apply({"params": p}, x, 0.5)[0] ** 2).sum()))(params)

  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5,
                                                       atol=1e-6),
               grads("none"), grads(remat))


def test_unknown_policy_names_the_nearest(made: Any) -> None:
  params, x = made
  with pytest.raises(ValueError, match="'ful'; did you mean 'full'"):
    Net("ful").apply({"params": params}, x)


def test_abstract_initialisation_makes_no_array() -> None:
  class Wide(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
      return LayerStack(Block(20_000), 1000, name="layers")(x)[0]

  shapes = jax.eval_shape(
      Wide().init, jax.random.key(0), jnp.zeros((1, 20_000)))
  assert shapes["params"]["layers"]["w_dd"].shape == (1000, 20_000, 20_000)
