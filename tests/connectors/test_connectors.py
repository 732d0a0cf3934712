"""Each connector computes its paper's equation, and says what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from align_jax.config import MeshConfig
from align_jax.connectors import CONNECTORS
from align_jax.connectors.protocol import Connector, ConnectorOutput, Context
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.parallel.rules import shardings
from align_jax.train.select import flatten, unflatten

B, N, P, C, D, V = 8, 2, 16, 8, 8, 24

# Sizes small enough for a test; what is not here has none of its own.
SMALL = {
    "perceiver": dict(latents=3, depth=2, heads=2, head_width=4),
    "ovis": dict(words=29, stride=2),
    "c_abstractor": dict(latents=4, width=16, depth=2),
    "d_abstractor": dict(latents=4, width=16, depth=2, heads=2, points=2,
                         mlp_width=16),
}
SMALL["qformer"] = dict(queries=3, depth=3, width=8, heads=2, mlp_width=16,
                        words=11, positions=8, instruction_length=4)
SMALL["sam"] = SMALL["qformer"] | dict(layer_h=2, layer_c=3, memory="all")
SMALL["vpg_c"] = SMALL["qformer"] | dict(text=False, layer=1)
SMALL["guided_perceiver"] = SMALL["perceiver"]
# Compiled for a mesh in the quick tier: all on two meshes, or on one.
PLAIN = ("linear", "mlp", "align")
QUICK = ("ovis", "h_reducer", "pixel_shuffle", "sam")


def _inputs(seed=0):
  rng = np.random.default_rng(seed)
  features = rng.normal(size=(B, N, P, C)).astype("f")
  embed_vd = rng.normal(size=(V, D)).astype("f")
  segments = np.ones((B, N), "i")
  segments[1], segments[2, 1] = (1, 2), 0
  ids = rng.integers(0, 11, (B, 2, 4)).astype("i")
  return features, Context(jnp.asarray(embed_vd), jnp.asarray(segments),
                           {"instruction": jnp.asarray(ids)})


def _make(name, layout=Layout(), **options):
  return CONNECTORS.get(name)(dim_out=D, vocab_size=V, layout=layout,
                              **(SMALL.get(name, {}) | options))


def _random_params(module, features, context):
  shapes = jax.eval_shape(module.init, jax.random.key(0), features,
                          context.image_segment_ids > 0, context)["params"]
  rng = np.random.default_rng(1)
  # Matrices keep the scale of what they multiply.
  return jax.tree.map(
      lambda s: jnp.asarray(rng.normal(
          size=s.shape, scale=s.shape[0] ** -0.5 if len(s.shape) > 1 else 1
      ).astype("f")), shapes)


def _layer_norm_slowly(x, scale, bias):
  mean = sum(x) / len(x)
  var = sum((v - mean) ** 2 for v in x) / len(x)
  return np.array([(v - mean) / np.sqrt(var + 1e-5) * s + b
                   for v, s, b in zip(x, scale, bias)])


def test_align_is_equations_1_and_2_computed_slowly():
  features, context = _inputs()
  module = _make("align")
  params = _random_params(module, features, context)
  got = module.apply({"params": params}, features, None, context).tokens
  p = {k: np.asarray(v, "d") for k, v in params.items()}
  embed = np.asarray(context.embed_vd, "d")
  for b, n, t in [(0, 0, 0), (3, 1, 2), (7, 0, 1)]:
    h = np.array([sum(features[b, n, t, c] * p["w1_cd"][c, d]
                      for c in range(C)) for d in range(D)])
    h = _layer_norm_slowly(h, p["norm1_scale_d"], p["norm1_bias_d"])
    s = np.array([sum(p["w2_vd"][v, d] * h[d] for d in range(D))
                  for v in range(V)])
    s = _layer_norm_slowly(s, p["norm2_scale_v"], p["norm2_bias_v"])
    probs = np.exp(s) / np.exp(s).sum()
    want = sum(probs[v] * embed[v] for v in range(V))
    np.testing.assert_allclose(got[b, n, t], want, rtol=2e-5, atol=2e-6)


def test_align_stays_in_the_hull_of_the_embeddings():
  features, context = _inputs()
  module = _make("align")
  out = module.apply(
      {"params": _random_params(module, features, context)}, features, None,
      context)
  probs = np.asarray(out.aux["probs_tv"])
  assert (probs >= 0).all()
  np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-5)
  np.testing.assert_allclose(
      out.tokens, probs @ np.asarray(context.embed_vd), rtol=1e-4, atol=1e-5)


def test_align_mixes_what_the_llm_reads():
  """Gemma scales the embeddings of words where they enter."""
  features, context = _inputs()
  module = _make("align")
  params = {"params": _random_params(module, features, context)}
  plain, scaled = (module.apply(params, features, None, c).tokens
                   for c in (context, context.replace(embed_scale=3.0)))
  np.testing.assert_allclose(scaled, 3 * np.asarray(plain), rtol=1e-6)


def test_align_passes_gradient_into_the_live_table():
  features, context = _inputs()
  module = _make("align")
  params = _random_params(module, features, context)
  grad = jax.grad(lambda e: (module.apply(
      {"params": params}, features, None,
      context.replace(embed_vd=e)).tokens ** 2).sum())(context.embed_vd)
  assert float(jnp.abs(grad).min(axis=1).max()) > 0


def test_align_starts_from_the_head():
  assert CONNECTORS.get("align").copied_from_decoder() == {
      "w2_vd": "head_vd"}


def test_mlp_is_two_maps_around_an_exact_gelu():
  from math import erf
  features, context = _inputs()
  module = _make("mlp")
  params = _random_params(module, features, context)
  got = module.apply({"params": params}, features, None, context).tokens
  p = {k: np.asarray(v, "d") for k, v in params.items()}
  x = features[2, 1, 0].astype("d") @ p["in_cf"] + p["in_bias_f"]
  x = np.array([0.5 * v * (1 + erf(v / np.sqrt(2))) for v in x])
  np.testing.assert_allclose(
      got[2, 1, 0], x @ p["out_fd"] + p["out_bias_d"], rtol=1e-4, atol=1e-5)


def _count(params):
  return sum(x.size for x in jax.tree.leaves(params))


def test_mlp_wide_has_aligns_parameters():
  features, context = _inputs()
  count = {name: _count(_random_params(_make(name), features, context))
           for name in ("mlp", "mlp_wide", "align")}
  # A row and a column of W more, or less, is as near as a width can come.
  assert abs(count["mlp_wide"] - count["align"]) <= (C + 1 + D) / 2
  assert count["mlp"] < count["align"]


def test_mlp_ln_is_the_mlp_with_aligns_norms():
  from math import erf
  features, context = _inputs()
  module = _make("mlp_ln", gain=0.5)
  fresh = module.init(jax.random.key(0), features, None, context)["params"]
  assert (fresh["out_norm_scale_d"] == 0.5).all()
  params = _random_params(module, features, context)
  got = module.apply({"params": params}, features, None, context).tokens
  p = {k: np.asarray(v, "d") for k, v in params.items()}
  x = features[2, 1, 0].astype("d") @ p["in_cf"] + p["in_bias_f"]
  x = _layer_norm_slowly(x, p["in_norm_scale_f"], p["in_norm_bias_f"])
  x = np.array([0.5 * v * (1 + erf(v / np.sqrt(2))) for v in x])
  x = x @ p["out_fd"] + p["out_bias_d"]
  x = _layer_norm_slowly(x, p["out_norm_scale_d"], p["out_norm_bias_d"])
  np.testing.assert_allclose(got[2, 1, 0], x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONNECTORS.names())
def test_what_is_promised_of_tokens_and_specials_holds(name):
  features, context = _inputs()
  module = _make(name)
  out = jax.eval_shape(
      lambda f, c: module.init_with_output(
          jax.random.key(0), f, c.image_segment_ids > 0, c)[0],
      features, context)
  promised = module.tokens_out(P, **SMALL.get(name, {}))
  assert out.tokens.shape == (B, N, promised, D)
  used = {x for part in module.frame(**SMALL.get(name, {})) for x in part}
  special = out.aux.get("special_xd", jnp.zeros((0, D)))
  assert not used or max(used) < special.shape[0]


@pytest.mark.parametrize("name", [
    name for name in CONNECTORS.names() if CONNECTORS.get(name).keeps_grid])
def test_a_token_of_a_kept_grid_hears_most_of_its_own_patches(name):
  """As SEA pairs them: a block of patches and the token at its place.

  Convolutions hear a neighbour's edge too, so that some may be off.
  """
  side, patches = 8, 64
  rng = np.random.default_rng(0)
  features = rng.normal(size=(1, 1, patches, C)).astype("f")
  moved = np.repeat(features, patches, 0)
  moved[np.arange(patches), 0, np.arange(patches)] *= -1
  context = Context(_inputs()[1].embed_vd, jnp.ones((1, 1), jnp.int32))
  module = _make(name, **(dict(latents=16) if name == "c_abstractor" else {}))
  params = _random_params(module, features, context)
  tokens = lambda x: module.apply({"params": params}, x, jnp.ones(
      x.shape[:2], bool), context.replace(image_segment_ids=jnp.ones(
          x.shape[:2], jnp.int32))).tokens
  change = np.square(tokens(moved) - tokens(features)).sum(-1)[:, 0]
  across = round(change.shape[1] ** 0.5)
  block, at = side // across, np.arange(patches)
  own = at // side // block * across + at % side // block
  assert np.mean(change.argmax(-1) == own) > 0.8


def test_linear_is_one_map():
  features, context = _inputs()
  module = _make("linear")
  params = _random_params(module, features, context)
  got = module.apply({"params": params}, features, None, context).tokens
  np.testing.assert_allclose(
      got, features @ np.asarray(params["kernel_cd"])
      + np.asarray(params["bias_d"]), rtol=1e-4, atol=1e-5)


def _cases():
  """A connector, options of its own and a mesh each."""
  first, second = dict(data=2, fsdp=2, tensor=2), dict(fsdp=4, tensor=2)
  for name in CONNECTORS.names():
    for mesh, quick in ((first, PLAIN + QUICK), (second, PLAIN)):
      marks = () if name in quick else pytest.mark.slow
      # Two layers of points that move carry rounding up to the limit: as far
      # as the compiled program strays from the uncompiled one.
      own = dict(depth=1) if name == "d_abstractor" else {}
      yield pytest.param(name, own, mesh, marks=marks,
                         id=f"{name}-{'x'.join(map(str, mesh.values()))}")
  for memory in ("others", "elsewhere"):
    yield pytest.param("sam", dict(memory=memory), dict(fsdp=8),
                       marks=pytest.mark.slow, id=f"sam-{memory}-8")


@pytest.mark.parametrize("name,options,shape", _cases())
def test_sharded_equals_unsharded_with_gradients(name, options, shape):
  features, context = _inputs()
  params = _random_params(_make(name, **options), features, context)

  def loss(module):
    def run(params, features, context):
      out = module.apply({"params": params}, features,
                         context.image_segment_ids > 0, context)
      return (out.tokens.astype("f") ** 2).sum()
    return jax.value_and_grad(run)

  want = jax.jit(loss(_make(name, **options)))(params, features, context)
  mesh = make_mesh(MeshConfig(**shape))
  flat = {f"connector/{k}": v for k, v in flatten(params).items()}
  where = shardings(flat, mesh)
  placed = unflatten({k.removeprefix("connector/"): jax.device_put(
      v, where[k]) for k, v in flat.items()})
  table = jax.device_put(
      context.embed_vd, shardings({"decoder/embed_vd": context.embed_vd},
                                  mesh)["decoder/embed_vd"])
  rows = NamedSharding(mesh, Layout(mesh).spec("b"))
  with jax.set_mesh(mesh):
    got = jax.jit(loss(_make(name, Layout(mesh), **options)))(
        placed, jax.device_put(features, rows),
        Context(table, jax.device_put(context.image_segment_ids, rows),
                jax.device_put(context.extras, rows)))
  whole = np.sqrt(sum(np.linalg.norm(w) ** 2 for w in jax.tree.leaves(want)))
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    if np.linalg.norm(w) < 1e-6 * whole:
      # Zero but for rounding, as a bias of keys under a softmax.
      assert np.linalg.norm(g) < 1e-6 * whole
      continue
    assert np.linalg.norm(g - w) <= 1e-5 * max(np.linalg.norm(w), 1e-6)


def test_a_users_connector_registers_and_a_wrong_name_teaches(monkeypatch):
  monkeypatch.setattr(CONNECTORS, "_entries", dict(CONNECTORS._entries))

  @CONNECTORS.register("mean_of_patches")
  class MeanOfPatches(Connector):

    @classmethod
    def tokens_out(cls, patches, **options):
      return 1

    def __call__(self, features, image_mask, context):
      return ConnectorOutput(features.mean(2, keepdims=True))

  assert CONNECTORS.get("mean_of_patches").tokens_out(9) == 1
  with pytest.raises(KeyError, match="did you mean 'align'"):
    CONNECTORS.get("alignn")
