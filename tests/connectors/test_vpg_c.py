"""VPG-C: the LLM reads, asks, and reads on with what it was told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.connectors import CONNECTORS
from align_jax.connectors.protocol import Context
from align_jax.evals.generate import Generator
from align_jax.evals.prompts import Prompt
from align_jax.train.select import flatten
from tests import tiny

OPTIONS = dict(queries=4, depth=2, width=8, heads=2, mlp_width=12)


@pytest.fixture(scope="module")
def world():
  """(model, parameters, batch): two samples a row, the first has images."""
  model = tiny.tiny_vlm("vpg_c", layer=1, **OPTIONS)
  batch = tiny.random_batch(rows=3)
  shapes = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda s: jnp.asarray(
      rng.normal(size=s.shape, scale=0.4).astype("f")), shapes)
  params["tower"] = jax.jit(model.tower.init)(
      jax.random.key(1), jnp.zeros((1, 16, 16, 3)))["params"]
  return model, params, batch


def _parts(m, batch, frozen_look=None):
  """Every step of the second look by itself."""
  features = m.features(batch)
  visual = m.connect(features, batch["image_segment_ids"])
  x = m.embed(batch["tokens"], batch["visual_index"], visual)
  states, _ = m.decoder(x, batch["positions"], batch["segment_ids"],
                        return_all=True)
  return features, visual.tokens, states


def test_the_second_look_step_by_step(world):
  model, params, batch = world
  out = jax.jit(model.apply)({"params": params}, batch)["hidden"]
  features, tokens, states = jax.jit(lambda p: model.apply(
      {"params": p}, batch, method=_parts))(params)
  own = params["connector"]
  middle = np.asarray(states[1]).copy()  # after one layer
  for row in range(3):
    slots = batch["image_segment_ids"][row]
    labels = np.flatnonzero(batch["loss_weights"][row] > 0)
    inside = labels[batch["segment_ids"][row][labels] == 1]
    for n in np.flatnonzero(slots):
      h = np.asarray(states[1])[row, inside[0]]
      g = h @ own["again_ask_de"] + own["again_ask_bias_e"]
      asking = dict(own) | {"queries_te": own["again_queries_te"] + g}
      plain = CONNECTORS.get("qformer")(dim_out=16, text=False, **OPTIONS)
      # Its map to the LLM's width is exchanged for W_p.
      asking |= {"out_ed": own["again_tell_ed"],
                 "out_bias_d": own["again_tell_bias_d"]}
      asking = {k: v for k, v in asking.items() if "again" not in k}
      told = plain.apply(
          {"params": asking}, features[row, n][None, None], None,
          Context(jnp.zeros((1, 16)), jnp.ones((1, 1), jnp.int32))).tokens
      where = np.flatnonzero((batch["visual_index"][row] >= n * 4)
                             & (batch["visual_index"][row] < n * 4 + 4))
      middle[row, where] += np.asarray(told)[0, 0]
  assert np.abs(middle - states[1]).max() > 0.1

  def rest(m, x):
    from align_jax.ops.norms import rms_norm
    c = m.decoder.config
    where = dict(q_segments=batch["segment_ids"],
                 kv_segments=batch["segment_ids"],
                 q_positions=batch["positions"],
                 kv_positions=batch["positions"])
    y, _ = m.decoder.layers(x, m.decoder._rope(where), where, None, first=1)
    return rms_norm(y, m.decoder.final_norm, c.norm_eps)

  want = jax.jit(lambda p, x: model.apply({"params": p}, x, method=rest))(
      params, jnp.asarray(middle))
  real = batch["segment_ids"] > 0
  np.testing.assert_allclose(out[real], want[real], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_at_its_start_it_is_blip2_and_the_way_back_learns_first(world):
  model, params, batch = world
  own = {k: v * 0 if k[:9] in ("again_ask", "again_tel") else v
         for k, v in params["connector"].items()}
  zeroed = params | {"connector": own}
  plain = tiny.tiny_vlm("qformer", text=False, **OPTIONS)
  former = {k: v for k, v in own.items() if not k.startswith("again")}
  ours = jax.jit(model.apply)({"params": zeroed}, batch)["hidden"]
  theirs = jax.jit(plain.apply)(
      {"params": params | {"connector": former}}, batch)["hidden"]
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
  loss = lambda c: (model.apply({"params": params | {"connector": c}},
                                batch)["hidden"] ** 2).sum()
  grads = jax.jit(jax.grad(loss))(own)
  size = {k: float(jnp.abs(g).max()) for k, g in grads.items()
          if k.startswith("again")}
  assert size["again_tell_ed"] > 1e-4
  assert size["again_ask_de"] == size["again_queries_te"] == 0


def test_what_is_trained_has_the_published_size():
  module = CONNECTORS.get("vpg_c")(dim_out=4096)
  features = jax.ShapeDtypeStruct((1, 1, 257, 1408), jnp.float32)
  asked = jax.ShapeDtypeStruct((1, 1, 4096), jnp.float32)
  ctx = Context(jnp.zeros((1, 4096)), jnp.ones((1, 1), jnp.int32))
  shapes = jax.eval_shape(lambda f, a: module.init(
      jax.random.key(0), f, None, ctx, asked=a), features, asked)["params"]
  assert sum(v.size for k, v in flatten(shapes).items()
             if k.startswith("again_")) == 6_320_896


def test_generation_looks_again_as_training_does(world):
  model, params, batch = world
  rng = np.random.default_rng(2)
  images = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
  boxes = np.tile(np.array([0, 0, 16, 16], np.int32), (2, 1))
  head = [3, *[0] * 8]
  visual = [-1, *range(8)]
  prompts = [Prompt(np.array(head + tail, np.int32),
                    np.array(visual + [-1] * len(tail), np.int32), 0)
             for tail in ([5, 6, 7], [5, 9])]
  got = Generator(model, params, [63]).score(
      prompts, [[v] for v in range(64)], lambda key: (images, boxes))
  for prompt, scores in zip(prompts, got):
    n = len(prompt.tokens)
    row = dict(tokens=prompt.tokens[None], visual_index=prompt.visual[None],
               positions=np.arange(n)[None], segment_ids=np.ones((1, n), int),
               images=images[None], image_boxes=boxes[None],
               image_segment_ids=np.ones((1, 2), int))
    out = model.apply({"params": params}, row)
    want = jax.nn.log_softmax(out["hidden"][0, -1] @ out["head_vd"].T)
    np.testing.assert_allclose(scores, want, rtol=1e-4, atol=1e-4)
  assert np.abs(got[0] - got[1]).max() > 1e-2


def test_a_decoder_without_that_layer_is_refused(world):
  _, params, batch = world
  model = tiny.tiny_vlm("vpg_c", layer=2, **OPTIONS)
  with pytest.raises(ValueError, match="not after 2"):
    model.apply({"params": params}, batch)
