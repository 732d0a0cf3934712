"""Tower, connector and decoder joined: layouts, packing, batches."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from align_jax.config import Config, DataConfig, MeshConfig, ModelConfig
from align_jax.decoders.lora import Lora
from align_jax.objectives.next_token import NextToken, labelled
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.parallel.rules import shardings
from align_jax.train.select import flatten, unflatten
from align_jax.train.state import new_state
from align_jax.train.step import make_step
from tests.tiny import PATCHES, random_batch, tiny_params, tiny_vlm

CONFIG = Config("tiny", ModelConfig(),
                DataConfig(row_length=16, labels_per_row=4), ())
OBJECTIVE = NextToken(CONFIG)


def _loss_and_grads(model, layout=Layout()):
  def loss(params, batch):
    outputs = model.apply({"params": params}, batch)
    total = OBJECTIVE(outputs, batch, jax.random.key(0), layout)
    return total / OBJECTIVE.weight(batch)
  return jax.jit(jax.value_and_grad(loss))


def _assert_same_gradients(got, want, rounding=lambda path: 0.0):
  got, want = flatten(got), flatten(want)
  scale = np.sqrt(sum(np.sum(np.square(w)) for w in want.values()))
  for path in want:
    # A key's bias has no gradient in exact arithmetic: the rounding that
    # stands there instead is held against the whole.
    limit = (1e-6 * scale if path.endswith("k_bias_hk")
             else 1e-5 * np.linalg.norm(want[path]))
    assert np.linalg.norm(got[path] - want[path]) <= limit + rounding(
        path), path


@functools.cache
def _on_one_device(connector="mlp"):
  """(batch, params, (loss, gradients)), shared by the tests below."""
  batch = random_batch()
  params = tiny_params(tiny_vlm(connector), batch)
  return batch, params, _loss_and_grads(tiny_vlm(connector))(params, batch)


SLOW = pytest.mark.slow

# Every axis alone, then the mixtures that configs use (their shapes are of
# other sizes; tests/parallel/test_presets.py looks that none is missing).
ALONE = [dict(data=8), dict(replica=8, data=1), dict(data=1, fsdp=8),
         dict(data=1, tensor=8), dict(data=1, context=8)]
MIXED = [dict(data=4, fsdp=2), dict(data=2, fsdp=2, tensor=2),
         dict(data=1, fsdp=4, tensor=2), dict(data=1, fsdp=4, context=2),
         dict(data=1, fsdp=2, tensor=2, context=2),
         dict(data=2, fsdp=2, context=2)]


@pytest.mark.parametrize("connector,shape", [
    ("align", dict(data=2, fsdp=2, tensor=2)),
    ("mlp", dict(replica=2, data=1, fsdp=2, context=2)),
    *(pytest.param(connector, shape, marks=SLOW)
      for connector in ("mlp", "align") for shape in ALONE + MIXED),
    *(pytest.param("linear", shape, marks=SLOW) for shape in MIXED[:1]),
])
def test_every_layout_gives_the_loss_and_gradients_of_one_device(
    connector, shape, capfd):
  batch, params, want = _on_one_device(connector)
  mesh = make_mesh(MeshConfig(**shape))
  layout = Layout(mesh)
  flat = flatten(params)
  where = shardings(flat, mesh)
  placed = unflatten({k: jax.device_put(v, where[k]) for k, v in flat.items()})
  rows = NamedSharding(mesh, layout.spec("b"))
  capfd.readouterr()
  got = _loss_and_grads(tiny_vlm(connector, layout), layout)(
      placed, jax.device_put(batch, rows))
  assert "rematerialization" not in capfd.readouterr().err
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  _assert_same_gradients(got[1], want[1])


def _step_gradients(accumulate, **shape):
  """What plain descent at rate 1 takes off in one step of training."""
  mesh = make_mesh(MeshConfig(**shape), jax.devices()[:4])
  layout = Layout(mesh)
  batch, params, _ = _on_one_device()
  flat = flatten(params)
  where = shardings(flat, mesh)
  # A copy, since the step donates its state.
  trained = {k: jax.device_put(np.array(v), where[k]) for k, v in flat.items()}
  tx = optax.sgd(1.0)
  state = new_state(trained, {}, tx, mesh)
  step = make_step(
      tiny_vlm(layout=layout), {"next_token": (OBJECTIVE, 1.0)}, tx,
      lambda step: 1.0, state, layout, accumulate=accumulate)
  rows = NamedSharding(mesh, layout.spec("b"))
  state, _ = step(state, jax.device_put(batch, rows))
  return unflatten({k: np.asarray(flat[k], "d") - np.asarray(v, "d")
                    for k, v in state.trained.items()})


@pytest.mark.parametrize("accumulate,shape", [
    (2, dict(data=2, fsdp=2)),
    pytest.param(1, dict(data=1, fsdp=2, tensor=2), marks=SLOW),
    pytest.param(4, dict(data=2, tensor=2), marks=SLOW),
])
def test_accumulation_gives_the_gradients_of_the_whole_batch(
    accumulate, shape):
  _, params, (_, want) = _on_one_device()
  params = flatten(params)
  # The difference of two f32 parameters carries their rounding.
  _assert_same_gradients(
      _step_gradients(accumulate, **shape), want,
      lambda path: 1e-7 * np.linalg.norm(params[path]))


@pytest.mark.parametrize(
    "remat", ["full", *(pytest.param(name, marks=SLOW)
                        for name in ("dots", "attention", "offload"))])
def test_rematerialisation_changes_no_gradient(remat):
  batch, params, want = _on_one_device()
  got = _loss_and_grads(tiny_vlm(remat=remat))(params, batch)
  _assert_same_gradients(got[1], want[1])


def test_the_loss_is_the_mean_over_labels_computed_slowly():
  batch, params, (loss, _) = _on_one_device()
  model = tiny_vlm()
  out = model.apply({"params": params}, batch)
  logits = np.asarray(model.apply(
      {"params": params}, out["hidden"], method="logits"), "d")
  total = count = 0.0
  for b in range(8):
    for l in range(16):
      if weight := batch["loss_weights"][b, l]:
        row = logits[b, l]
        total -= weight * (row[batch["targets"][b, l]]
                           - np.log(np.exp(row).sum()))
        count += weight
  np.testing.assert_allclose(loss, total / count, rtol=1e-5)


def test_a_packed_row_gives_what_its_samples_give_alone():
  batch = random_batch(rows=2, images=(2,))
  model = tiny_vlm()
  params = tiny_params(model, batch)
  packed = np.asarray(model.apply({"params": params}, batch)["hidden"])
  for segment, span in [(1, slice(0, 11)), (2, slice(11, 15))]:
    alone = dict(batch)
    size = span.stop - span.start
    for key, empty in [("tokens", 0), ("positions", 0), ("segment_ids", 0),
                       ("visual_index", -1)]:
      alone[key] = np.full_like(batch[key], empty)
      alone[key][:, :size] = batch[key][:, span]
    alone["image_segment_ids"] = np.where(
        batch["image_segment_ids"] == segment, 1, 0).astype("i")
    hidden = model.apply({"params": params}, alone)["hidden"]
    np.testing.assert_allclose(
        hidden[:, :size], packed[:, span], rtol=1e-5, atol=1e-5)


def test_an_image_reaches_only_its_own_sample():
  batch = random_batch(rows=2, images=(1,))
  model = tiny_vlm()
  params = tiny_params(model, batch)
  other = dict(batch, images=255 - batch["images"])
  a = np.asarray(model.apply({"params": params}, batch)["hidden"])
  b = np.asarray(model.apply({"params": params}, other)["hidden"])
  np.testing.assert_array_equal(a[:, 0], b[:, 0])       # before the image
  assert np.abs(a[:, 1:11] - b[:, 1:11]).max() > 1e-3   # from it on
  np.testing.assert_array_equal(a[:, 11:15], b[:, 11:15])  # another sample


def test_a_batch_without_images_never_runs_the_tower():
  batch = random_batch(images=(0,))
  model = tiny_vlm()
  params = tiny_params(model, batch)
  params["tower"] = jax.tree.map(lambda x: x * np.nan, params["tower"])
  features = jax.jit(lambda p, b: model.apply(
      {"params": p}, b, method="features"))
  assert np.isfinite(features(params, batch)).all()
  batch["image_segment_ids"][0, 0] = 1
  assert not np.isfinite(features(params, batch)).all()


def test_visual_tokens_stand_at_their_places():
  batch = random_batch(images=(2,))
  model = tiny_vlm()
  params = tiny_params(model, batch)

  def embedded(model, batch):
    visual = model.encode_images(batch)
    return model.embed(batch["tokens"], batch["visual_index"],
                       visual), visual.tokens

  x, visual = model.apply({"params": params}, batch, method=embedded)
  np.testing.assert_array_equal(x[3, 1:5], visual[3, 0])
  np.testing.assert_array_equal(x[3, 6:10], visual[3, 1])
  assert visual.shape == (8, 2, PATCHES, 16)


def test_learned_prompt_tokens_stand_at_their_places():
  """They are the first special tokens of a bank, behind all images."""
  batch = random_batch(images=(2,))
  batch["visual_index"][:, :1] = 2 * PATCHES + 1
  model = tiny_vlm().clone(prompt_tokens=2)
  params = _on_one_device()[1] | {
      "prompt_xd": np.arange(32, dtype="f").reshape(2, 16)}

  def embedded(model, batch):
    visual = model.encode_images(batch)
    return model.embed(batch["tokens"], batch["visual_index"], visual)

  x = model.apply({"params": params}, batch, method=embedded)
  np.testing.assert_array_equal(x[3, 0], params["prompt_xd"][1])


@pytest.mark.slow
def test_adapters_and_prompt_on_a_mesh_give_one_devices_gradients():
  batch = random_batch()
  batch["visual_index"][:, 0] = 2 * PATCHES + 1

  def model(layout=Layout()):
    vlm = tiny_vlm("align", layout, preset="released_code")
    return vlm.clone(prompt_tokens=2, decoder=vlm.decoder.clone(
        lora=Lora(2, 2.0, ("q", "v", "o", "down"))))

  flat = flatten(tiny_params(model(), batch))
  rng = np.random.default_rng(0)
  flat = {p: rng.normal(size=x.shape).astype("f") if "_lora_r" in p else x
          for p, x in flat.items()}
  want = _loss_and_grads(model())(unflatten(flat), batch)
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  where = shardings(flat, mesh)
  placed = unflatten({k: jax.device_put(v, where[k])
                      for k, v in flat.items()})
  rows = NamedSharding(mesh, Layout(mesh).spec("b"))
  got = _loss_and_grads(model(Layout(mesh)), Layout(mesh))(
      placed, jax.device_put(batch, rows))
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  _assert_same_gradients(got[1], want[1])
  assert np.abs(want[1]["prompt_xd"][1]).max() > 0


def test_labelled_positions_come_in_order_and_first():
  weights = np.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 1]], "f")
  np.testing.assert_array_equal(labelled(weights, 2), [[1, 3], [4, 0]])
