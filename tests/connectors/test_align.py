"""Every flag of ALIGN is what it says, computed the slow way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from align_jax.config import MeshConfig
from align_jax.connectors.align import (
  PRESETS,
  Align,
  Flags,
  flags_of,
  random_table,
)
from align_jax.connectors.protocol import Context
from align_jax.errors import InputError
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.parallel.rules import shardings

B, N, P, C, D, V = 8, 1, 2, 6, 8, 24
KEEP = (1, 4, 5, 17, 22)


def _inputs():
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape).astype("f"))
  context = Context(draw(V, D), jnp.ones((B, N), jnp.int32), {}, draw(V, D))
  return draw(B, N, P, C), context


def _params(module, features, context):
  shapes = jax.eval_shape(module.init, jax.random.key(0), features, None,
                          context)["params"]
  rng = np.random.default_rng(1)
  return {k: jnp.asarray(rng.normal(size=s.shape).astype("f"))
          for k, s in sorted(shapes.items())}


def _norm(x, p, name, letter, gain=1.0):
  x = [v - sum(x) / len(x) for v in x]
  var = sum(v * v for v in x) / len(x)
  scale = p.get(f"{name}_scale_{letter}", [gain] * len(x))
  bias = p.get(f"{name}_bias_{letter}", [0.0] * len(x))
  return [v / np.sqrt(var + 1e-5) * s + b
          for v, s, b in zip(x, scale, bias)]


def _slowly(f, p, embed, head, flags, keep=(), norm_kept=False):
  """One token, one number at a time."""
  p = {k: np.asarray(v, "d") for k, v in p.items()}
  h = [sum(f[c] * p["w1_cd"][c, d] for c in range(C))
       + (p["w1_bias_d"][d] if flags.biases else 0) for d in range(D)]
  h = _norm(h, p, "norm1", "d")
  h = [max(v, 0) for v in h] if flags.relu else h
  w2 = head if flags.tied_w2 else p["w2_vd"]
  words = list(keep) if keep and norm_kept else list(range(V))
  z = [sum(w2[v, d] * h[d] for d in range(D))
       + (p["w2_bias_v"][v] if flags.biases else 0) for v in words]
  of_words = {k: x[words] for k, x in p.items() if k.startswith("norm2")}
  z = dict(zip(words, _norm(z, of_words, "norm2", "v", flags.logit_gain)))
  kept = {v: np.exp(z[v]) for v in (keep or words)}
  total = sum(kept.values())
  out = [sum(e / total * embed[v, d] for v, e in kept.items())
         for d in range(D)]
  return _norm(out, p, "out_norm", "d") if flags.out_norm else out


@pytest.mark.parametrize("options", [
    dict(relu=True), dict(out_norm=True), dict(tied_w2=True),
    dict(affine=False), dict(affine=False, logit_gain=3.0),
    dict(biases=True), dict(logit_gain=3.0), dict(preset="released_code"),
    dict(preset="released_code", relu=False, affine=False),
    dict(preset="recommended"), dict(keep_words=KEEP),
    dict(keep_words=KEEP, norm_kept=True),
    dict(keep_words=KEEP, norm_kept=True, preset="released_code"),
], ids=str)
def test_flag_computed_slowly(options):
  features, context = _inputs()
  module = Align(dim_out=D, vocab_size=V, **options)
  params = _params(module, features, context)
  got = module.apply({"params": params}, features, None, context)
  embed, head = (np.asarray(x, "d")
                 for x in (context.embed_vd, context.head_vd))
  for b, p in [(0, 0), (7, 1)]:
    want = _slowly(np.asarray(features[b, 0, p], "d"), params, embed, head,
                   module.flags(), options.get("keep_words", ()),
                   options.get("norm_kept", False))
    np.testing.assert_allclose(got.tokens[b, 0, p], want, rtol=1e-4,
                               atol=2e-5)
  probs = np.asarray(got.aux["probs_tv"])
  np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-5)
  if "keep_words" in options:
    assert (np.delete(probs, KEEP, axis=-1) == 0).all()


def test_the_gain_is_where_the_second_norm_starts():
  features, context = _inputs()
  for preset, flags in PRESETS.items():
    params = Align(dim_out=D, vocab_size=V, preset=preset).init(
        jax.random.key(0), features, None, context)["params"]
    assert (params["norm2_scale_v"] == flags.logit_gain).all()


def test_the_norms_leave_nothing_of_scales_or_of_a_common_row():
  """Of a start, only W1's directions, W2's shape and the gain matter."""
  features, context = _inputs()
  module = Align(dim_out=D, vocab_size=V)
  params = _params(module, features, context)
  tokens = lambda p: np.asarray(
      module.apply({"params": p}, features, None, context).tokens)
  params |= {"norm1_bias_d": jnp.zeros(D)}
  want = tokens(params)
  row = jnp.asarray(np.random.default_rng(5).normal(size=(1, D)), "f")
  for name, change in (
      ("w1_cd", lambda x: 7 * x), ("norm1_scale_d", lambda x: 0.3 * x),
      ("w2_vd", lambda x: 5 * x), ("w2_vd", lambda x: x - row)):
    np.testing.assert_allclose(tokens(params | {name: change(params[name])}),
                               want, rtol=1e-3, atol=1e-4)
  gained = tokens(params | {"norm2_scale_v": 2 * params["norm2_scale_v"]})
  assert np.abs(gained - want).max() > 0.1


@pytest.mark.parametrize("flows", [True, False])
def test_gradient_reaches_the_live_table_or_not(flows):
  features, context = _inputs()
  module = Align(dim_out=D, vocab_size=V, embed_gradient=flows)
  params = _params(module, features, context)
  grad = jax.grad(lambda e: (module.apply(
      {"params": params}, features, None,
      context.replace(embed_vd=e)).tokens ** 2).sum())(context.embed_vd)
  assert bool((jnp.abs(grad).max(axis=1) > 0).all()) == flows


def test_a_tied_w2_is_no_parameter_and_its_gradient_reaches_the_head():
  features, context = _inputs()
  module = Align(dim_out=D, vocab_size=V, tied_w2=True)
  params = _params(module, features, context)
  assert "w2_vd" not in params
  grad = jax.grad(lambda w: (module.apply(
      {"params": params}, features, None,
      context.replace(head_vd=w)).tokens ** 2).sum())(context.head_vd)
  assert float(jnp.abs(grad).min(axis=1).max()) > 0


def test_presets_and_what_overrides_them():
  assert flags_of("paper", {}) == Flags()
  assert flags_of("released_code", {"relu": False}) == dataclasses.replace(
      PRESETS["released_code"], relu=False)
  copied = Align.copied_from_decoder
  assert copied(preset="recommended") == {"w2_vd": "head_vd"}
  assert copied(tied_w2=True) == {} and copied(w2_start="random") == {}
  with pytest.raises(InputError, match="did you mean 'paper'"):
    copied(preset="papers")
  with pytest.raises(InputError, match="did you mean 'head'"):
    copied(w2_start="heads")


@pytest.mark.parametrize("options", [
    dict(preset="released_code"), dict(keep_words=KEEP), dict(tied_w2=True)],
    ids=str)
def test_flags_sharded_equal_unsharded(options):
  features, context = _inputs()
  module = Align(dim_out=D, vocab_size=V, **options)
  params = _params(module, features, context)

  def loss(module):
    return jax.jit(jax.value_and_grad(lambda p, f, c: (module.apply(
        {"params": p}, f, None, c).tokens ** 2).sum()))

  want = loss(module)(params, features, context)
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  where = shardings({f"connector/{k}": v for k, v in params.items()}
                    | {"decoder/embed_vd": context.embed_vd}, mesh)
  rows = NamedSharding(mesh, Layout(mesh).spec("b"))
  put = lambda x: jax.device_put(x, where["decoder/embed_vd"])
  with jax.set_mesh(mesh):
    got = loss(module.clone(layout=Layout(mesh)))(
        {k: jax.device_put(v, where[f"connector/{k}"])
         for k, v in params.items()}, jax.device_put(features, rows),
        context.replace(embed_vd=put(context.embed_vd),
                        head_vd=put(context.head_vd),
                        image_segment_ids=jax.device_put(
                            context.image_segment_ids, rows)))
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  for name, g in got[1].items():
    w = np.asarray(want[1][name], "d")
    assert np.linalg.norm(g - w) <= 1e-5 * max(np.linalg.norm(w), 1e-6), name


def test_nan_features_make_their_own_tokens_nan_and_no_others():
  features, context = _inputs()
  module = Align(dim_out=D, vocab_size=V)
  params = _params(module, features, context)
  run = lambda f: np.asarray(module.apply(
      {"params": params}, f, None, context).tokens)
  clean, hit = run(features), run(features.at[3, 0, 1, 2].set(jnp.nan))
  assert np.isnan(hit[3, 0, 1]).all()
  others = np.isfinite(hit).all(-1)
  assert others.sum() == others.size - 1
  np.testing.assert_array_equal(hit[others], clean[others])


@pytest.mark.parametrize("options,said", [
    (dict(keep_words=(3, 99)), "a vocabulary of 24 has no word 99"),
    (dict(keep_words=(3, 3)), "a word is named more than once"),
    (dict(table="word"), "did you mean 'words'"),
    (dict(preset="papper"), "did you mean 'paper'")], ids=str)
def test_wrong_options_are_refused(options, said):
  features, context = _inputs()
  with pytest.raises(InputError, match=said):
    Align(dim_out=D, vocab_size=V, **options).init(
        jax.random.key(0), features, None, context)


def test_a_table_of_another_vocabulary_than_the_heads_is_refused():
  features, context = _inputs()
  with pytest.raises(InputError, match="has 20 words, the connector's W2 24"):
    Align(dim_out=D, vocab_size=V).init(
        jax.random.key(0), features, None,
        context.replace(embed_vd=context.embed_vd[:20]))


def test_a_random_table_has_the_mean_and_covariance_and_no_word():
  rng = np.random.default_rng(3)
  words = (rng.normal(size=(90, D)) @ rng.normal(size=(D, D)) + 2).astype("f")
  other = np.asarray(random_table(jnp.asarray(words)))
  np.testing.assert_allclose(other.mean(0), words.mean(0), atol=1e-3)
  np.testing.assert_allclose(np.cov(other, rowvar=False),
                             np.cov(words, rowvar=False), atol=2e-2)
  apart = np.linalg.norm(other[:, None] - words[None], axis=-1).min(1)
  assert (apart > 1e-2).all()
  np.testing.assert_array_equal(other, random_table(jnp.asarray(words)))


def test_random_rows_are_what_is_mixed():
  features, context = _inputs()
  module = Align(dim_out=D, vocab_size=V, table="random")
  params = _params(module, features, context)
  apply = lambda m, c: m.apply({"params": params}, features, None, c).tokens
  np.testing.assert_allclose(
      apply(module, context),
      apply(Align(dim_out=D, vocab_size=V), context.replace(
          embed_vd=random_table(context.embed_vd))), atol=1e-5)
