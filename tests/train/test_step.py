"""One step: gradients, accumulation, the gate, layouts, compilations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from align_jax.config import MeshConfig, StageConfig
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.parallel.rules import shardings
from align_jax.train.optimizer import decays, make_optimizer, schedule
from align_jax.train.select import flatten, split, trainables
from align_jax.train.state import new_state
from align_jax.train.step import make_step
from tests.train import toy

STAGE = StageConfig("s", 10, {"connector/*": 1e-2, "tower/layers[-1]/*": 1e-3},
                    warmup=2, weight_decay=0.1)


def build(mesh_config=None, stage=STAGE, accumulate=1, objectives=None,
          tx=None, devices=None, seed=3):
  mesh = make_mesh(mesh_config or MeshConfig(), devices)
  layout = Layout(mesh)
  params = flatten(toy.Toy().init(
      jax.random.key(0), toy.batch_of(np.random.default_rng(0)))["params"])
  where = shardings(params, mesh)
  params = {k: jax.device_put(v, where[k]) for k, v in params.items()}
  rates = trainables(params, stage.train)
  trained, frozen = split(params, rates)
  own, tx = tx, tx or make_optimizer(stage, rates)
  state = new_state(trained, frozen, tx, mesh)
  objectives = objectives or {"ce": (toy.CrossEntropy(), 1.0),
                              "noise": (toy.Noise(), 0.5)}
  step = make_step(toy.Toy(), objectives, tx, schedule(stage), state, layout,
                   accumulate=accumulate, seed=seed,
                   rates=None if own else rates)
  return state, step


def gradients(**options):
  """What plain descent at rate 1 takes off: the gradients themselves."""
  state, step = build(tx=optax.sgd(1.0), **options)
  before = jax.device_get(state.trained)
  state, metrics = step(state, toy.batch_of(np.random.default_rng(1)))
  after = jax.device_get(state.trained)
  return {k: before[k] - after[k] for k in before}, jax.device_get(metrics)


def same(a, b, limit=1e-5):
  for key in a:
    assert np.linalg.norm(a[key] - b[key]) <= limit * np.linalg.norm(a[key])
    assert np.linalg.norm(a[key]) > 0


@pytest.fixture(scope="module")
def reference():
  return gradients(devices=jax.devices()[:1])


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_changes_nothing(reference, parts):
  found, metrics = gradients(mesh_config=MeshConfig(data=2),
                             devices=jax.devices()[:2], accumulate=parts)
  same(reference[0], found)
  for name in reference[1]:
    np.testing.assert_allclose(metrics[name], reference[1][name], rtol=1e-5)


@pytest.mark.parametrize("mesh", [
    MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2),
    MeshConfig(replica=2, fsdp=4)])
def test_layouts_give_one_devices_gradients(reference, mesh):
  same(reference[0], gradients(mesh_config=mesh)[0])


def test_loss_is_the_mean_over_labels(reference):
  batch = toy.batch_of(np.random.default_rng(1))
  params = toy.Toy().init(jax.random.key(0), batch)
  logp = np.asarray(jax.nn.log_softmax(
      toy.Toy().apply(params, batch)["logits"]), np.float64)
  total = count = 0.0
  for row in range(toy.ROWS):
    for place in range(toy.LENGTH):
      weight = batch["loss_weights"][row, place]
      total -= weight * logp[row, place, batch["targets"][row, place]]
      count += weight
  metrics = reference[1]
  np.testing.assert_allclose(metrics["objective/ce"], total / count, rtol=1e-5)
  np.testing.assert_allclose(
      metrics["loss"],
      metrics["objective/ce"] + 0.5 * metrics["objective/noise"], rtol=1e-6)
  assert metrics["supervised_tokens"] == count
  assert metrics["tokens"] == toy.ROWS * toy.LENGTH
  used = (batch["image_segment_ids"] != 0).sum()
  assert metrics["images"] == used
  np.testing.assert_allclose(metrics["empty_image_slots"],
                             1 - used / (2 * toy.ROWS), rtol=1e-6)
  norms = [metrics["grad_norm/tower"], metrics["grad_norm/connector"]]
  np.testing.assert_allclose(np.hypot(*norms), metrics["grad_norm"], rtol=1e-5)


def test_what_is_not_finite_changes_nothing():
  state, step = build()
  rng = np.random.default_rng(1)
  state, _ = step(state, toy.batch_of(rng))
  before = jax.device_get(state)
  bad = toy.batch_of(rng)
  bad["loss_weights"][0, 0] = np.inf
  state, metrics = step(state, bad)
  assert metrics["finite"] == 0
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)
  state, metrics = step(state, toy.batch_of(rng))
  assert metrics["finite"] == 1 and int(state.step) == 2


def test_seed_and_rates_are_no_part_of_the_program():
  batch = toy.batch_of(np.random.default_rng(1))
  quick = dataclasses.replace(STAGE, train={
      k: 10 * v for k, v in STAGE.train.items()})
  one = dict(devices=jax.devices()[:1])
  made = [build(**one), build(seed=4, **one), build(stage=quick, **one)]
  texts = {step.lower(state, batch).as_text() for state, step in made}
  assert len(texts) == 1
  # And yet each run has its own.
  moved, noise = [], []
  for state, step in made:
    before = jax.device_get(state.trained)
    state, metrics = step(state, batch)
    noise.append(float(metrics["objective/noise"]))
    moved.append({k: np.abs(before[k] - v).max()
                  for k, v in jax.device_get(state.trained).items()})
  assert noise[0] == noise[2] != noise[1]
  for key in moved[0]:
    assert moved[2][key] == pytest.approx(10 * moved[0][key], rel=1e-2)


def test_compiled_once_and_frozen_stays():
  state, step = build(MeshConfig(data=2, fsdp=2, tensor=2))
  frozen = jax.device_get(state.frozen)
  where = jax.tree.map(lambda x: x.sharding, state)
  rng = np.random.default_rng(1)
  for _ in range(4):
    state, _ = step(state, toy.batch_of(rng))
  assert step.program._cache_size() == 1
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.frozen),
               frozen)
  assert jax.tree.map(lambda x: x.sharding, state) == where


def test_moments_lie_as_their_parameters_and_frozen_has_none():
  state, _ = build(MeshConfig(fsdp=8, data=1))
  adam = next(s for s in state.opt_state if hasattr(s, "mu"))
  assert sorted(adam.mu) == sorted(state.trained)
  for key, value in state.trained.items():
    assert adam.mu[key].sharding == adam.nu[key].sharding == value.sharding
  assert not state.trained["connector/w_dd"].sharding.is_fully_replicated
  assert not state.trained["tower/layers[2:3]/q_dk"].sharding \
      .is_fully_replicated


def test_moments_may_be_kept_in_less():
  """The first in bf16; the second, which bf16 would freeze, never."""
  stage = StageConfig("s", 4, {}, warmup=0, schedule="constant", clip_norm=0,
                      moment_dtype="bfloat16")
  tx = make_optimizer(stage, {"a/w_cd": 0.1})
  params = {"a/w_cd": jnp.full((2, 2), 2.0)}
  state = tx.init(params)
  adam = next(s for s in state if hasattr(s, "mu"))
  assert adam.mu["a/w_cd"].dtype == jnp.bfloat16
  assert adam.nu["a/w_cd"].dtype == jnp.float32
  gradient = jnp.array([[1.0, -3.0], [0.1, 7.0]])
  for _ in range(3):
    updates, state = tx.update({"a/w_cd": gradient}, state, params)
    # A constant gradient's bias-corrected moments are itself, squared.
    np.testing.assert_allclose(updates["a/w_cd"], -0.1 * np.sign(gradient),
                               rtol=1e-2)


def test_adamw_by_hand():
  """Two steps of clipped AdamW with a rate a path, in numpy."""
  rates = {"a/w_cd": 0.1, "b/bias_d": 0.01}
  stage = StageConfig("s", 4, {}, warmup=2, schedule="linear", clip_norm=1.0,
                      weight_decay=0.5)
  tx = make_optimizer(stage, rates)
  params = {"a/w_cd": np.full((2, 2), 2.0), "b/bias_d": np.full(2, 3.0)}
  grads = {"a/w_cd": np.full((2, 2), 3.0), "b/bias_d": np.full(2, 4.0)}
  now = {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}
  state = tx.init(now)
  norm = np.sqrt(4 * 9 + 2 * 16)
  moments = {k: (0.0, 0.0) for k in params}
  for t, share in ((1, 0.5), (2, 1.0)):
    updates, state = tx.update(
        {k: jnp.asarray(g, jnp.float32) for k, g in grads.items()}, state, now)
    now = optax.apply_updates(now, updates)
    for key, grad in grads.items():
      g = grad / norm
      m, v = moments[key]
      m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
      moments[key] = m, v
      step = (m / (1 - 0.9 ** t)) / (np.sqrt(v / (1 - 0.999 ** t)) + 1e-8)
      if key == "a/w_cd":  # a vector is not decayed
        step = step + 0.5 * params[key]
      params[key] = params[key] - rates[key] * share * step
      np.testing.assert_allclose(now[key], params[key], rtol=1e-5)


def test_schedules():
  shares = lambda **k: [float(schedule(StageConfig("s", 10, {}, **k))(i))
                        for i in range(10)]
  assert shares(warmup=2, schedule="constant") == [0.5] + [1.0] * 9
  line = shares(warmup=0.2, schedule="linear")
  assert line[:3] == [0.5, 1.0, 1.0] and line[-1] == pytest.approx(1 / 8)
  cosine = shares(warmup=0, schedule="cosine")
  assert cosine[0] == 1 and cosine[5] == pytest.approx(0.5)
  assert all(a > b for a, b in zip(cosine, cosine[1:]))


def test_only_matrices_decay():
  assert decays("tower/layers/q_dk", (3, 4, 4))
  assert decays("tower/layers[2:3]/q_dk", (1, 4, 4))
  assert not decays("tower/layers/bias_k", (3, 4))
  assert not decays("tower/layers/q_bias_hk", (3, 4, 4))
  assert not decays("connector/b_d", (4,)) and decays("connector/w_dd", (4, 4))
