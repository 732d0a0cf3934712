"""Adapters: nothing at the start, and the same model once they are added in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from align_jax.config import MeshConfig
from align_jax.decoders.lora import Lora, is_adapter, merged
from align_jax.decoders.transformer import DecoderConfig
from align_jax.errors import ConfigError
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.parallel.rules import shardings
from align_jax.train.select import flatten, unflatten
from align_jax.validate import validate
from tests.evals import tiny_run

CONFIG = DecoderConfig(vocab_size=32, width=16, layers=2, heads=4, kv_heads=2,
                       mlp_width=24)
ALL = Lora(2, 6.0, ("q", "k", "v", "o", "gate", "up", "down"))
SOME = Lora(3, 3.0, ("q", "down"))


def _x():
  return jnp.asarray(np.random.default_rng(0).normal(
      size=(4, 5, 16)).astype("f"))


def _hidden(params, lora=None, layout=Layout()):
  ids = jnp.ones((4, 5), jnp.int32)
  run = jax.jit(lambda p, x: CONFIG.make(lora=lora, layout=layout).apply(
      {"params": unflatten(p)}, x, jnp.cumsum(ids, 1) - 1, ids)[0])
  return run(params, _x())


def _params(lora, b=1.0):
  ids = jnp.ones((4, 5), jnp.int32)
  flat = flatten(jax.jit(CONFIG.make(lora=lora).init)(
      jax.random.key(0), _x(), ids, ids)["params"])
  rng = np.random.default_rng(1)
  return {p: jnp.asarray(b * rng.normal(size=x.shape).astype("f"))
          if "_lora_r" in p else x for p, x in flat.items()}


@pytest.mark.parametrize("lora", [ALL, pytest.param(
    SOME, marks=pytest.mark.slow)], ids=["all", "some"])
def test_merged_equals_unmerged(lora):
  params = _params(lora)
  with_adapters = _hidden(params, lora)
  plain = merged(params, lora)
  assert not any(map(is_adapter, plain))
  np.testing.assert_allclose(_hidden(plain), with_adapters, rtol=1e-4,
                             atol=1e-5)
  bare = {p: x for p, x in params.items() if not is_adapter(p)}
  assert np.abs(_hidden(bare) - with_adapters).max() > 0.1
  touched = {p for p in bare if (bare[p] != plain[p]).any()}
  assert {p.split("/")[-1].split("_")[0] for p in touched} == set(
      lora.targets)


def test_adapters_change_nothing_at_the_start():
  params = _params(ALL, b=0.0)
  bare = {p: x for p, x in params.items() if not is_adapter(p)}
  np.testing.assert_array_equal(_hidden(params, ALL), _hidden(bare))


@pytest.mark.slow
def test_only_adapters_are_trained_and_all_of_them():
  params = _params(SOME)
  train = {p: x for p, x in params.items() if is_adapter(p)}
  assert sorted(train) == [f"layers/{n}" for n in (
      "down_lora_fr", "down_lora_rd", "q_lora_dr", "q_lora_rhk")]
  grads = jax.grad(lambda t: (_hidden(params | t, SOME) ** 2).sum())(train)
  assert all(float(jnp.abs(g).max()) > 0 for g in grads.values())


def test_adapters_lie_as_their_letters_say_and_compute_the_same():
  params = _params(ALL)
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  where = shardings({f"decoder/{p}": x for p, x in params.items()}, mesh)
  spec = lambda name: where[f"decoder/layers/{name}"].spec
  assert spec("q_lora_dr") == P(None, "fsdp")
  assert spec("q_lora_rhk") == P(None, None, "tensor")
  assert spec("o_lora_hkr") == P(None, "tensor")
  placed = {p: jax.device_put(x, where[f"decoder/{p}"])
            for p, x in params.items()}
  with jax.set_mesh(mesh):
    got = _hidden(placed, ALL, Layout(mesh))
  want = _hidden(params, ALL)
  assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)
  assert isinstance(got.sharding, NamedSharding)


def test_faults_of_a_config_are_listed_together(tmp_path):
  config = tiny_run.config(tmp_path)
  config["model"] |= dict(
      lora=dict(rank=2, targets=["q", "gates", "q"]), prompt_tokens=-1)
  with pytest.raises(ConfigError) as error:
    validate(config)
  said = str(error.value)
  assert "did you mean 'gate'" in said and "named twice" in said
  assert "model.prompt_tokens: -1 is below 0" in said
  assert "no stage trains decoder/layers/*_lora_*" in said
  config["model"]["prompt_tokens"] = 2
  with pytest.raises(ConfigError, match="no stage trains prompt_xd"):
    validate(config)
