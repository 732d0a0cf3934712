"""The streaming ALIGN mix equals the plain one, in value and gradients."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from align_jax.bench.vocab_mix import gradients, shapes
from align_jax.config import MeshConfig
from align_jax.ops.vocab_mix import vocab_mix
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.parallel.rules import shardings

KEEP = (2, 3, 5, 11, 12, 19, 20)


def _inputs(vocab=24, rows=8, tokens=3, width=8, out=8):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype("f")
  h = draw(rows, tokens, width)
  # Rows far from the origin, as those of real heads are.
  return dict(h=h, w2_vd=draw(vocab, width) + 1.0,
              scale_v=2 + draw(vocab), bias_v=draw(vocab),
              embed_vd=draw(vocab, out) + 0.5)


def _grads(form, layout=Layout(), argnums=range(5), chunk=7, **options):
  weight = np.random.default_rng(1).normal(size=(8, 3, 8)).astype("f")

  @functools.partial(jax.value_and_grad, argnums=tuple(argnums))
  def loss(*args):
    out = vocab_mix(*args, form=form, chunk=chunk, layout=layout, **options)
    return (out * weight[:, :, :out.shape[-1]]).sum()

  return jax.jit(loss)


def _assert_same(got, want):
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  for g, w in zip(got[1], want[1]):
    assert np.linalg.norm(g - w) <= 1e-5 * np.linalg.norm(w)


def _kept(kept):
  return {} if kept is None else dict(
      keep=jnp.asarray(KEEP, jnp.int32), norm_kept=kept)


@pytest.mark.parametrize("chunk,kept", [
    (7, None), (7, False), (7, True), (8, None), *(
        pytest.param(chunk, kept, marks=pytest.mark.slow) for chunk, kept in (
            (8, False), (8, True), (100, None), (100, False), (100, True)))])
def test_streaming_equals_plain_with_every_gradient(chunk, kept):
  values = _inputs().values()
  want = _grads("plain", **_kept(kept))(*values)
  got = _grads("stream", chunk=chunk, **_kept(kept))(*values)
  _assert_same(got, want)


# 24 words divide over the devices; 21 and 5 do not, and 5 are too few for 8.
@pytest.mark.parametrize("vocab,shape", [
    (24, dict(data=1, tensor=2)),
    (21, dict(data=1, tensor=4)),
    (24, dict(data=1, fsdp=2, tensor=4)),
    (21, dict(data=2, fsdp=2, tensor=2)),
    *(pytest.param(vocab, shape, marks=pytest.mark.slow)
      for vocab in (24, 21, 5) for shape in (
          dict(data=8), dict(data=1, fsdp=8), dict(data=1, tensor=8),
          dict(data=1, fsdp=2, tensor=2, context=2),
          dict(replica=2, data=1, fsdp=2, context=2),
          dict(replica=2, data=2, tensor=2)))])
@pytest.mark.parametrize("kept", [None, *(
    pytest.param(kept, marks=pytest.mark.slow) for kept in (False, True))])
def test_every_sharding_equals_plain_on_one_device(vocab, shape, kept):
  if kept is not None and vocab == 5:
    pytest.skip("the kept words are of a larger vocabulary")
  values = _inputs(vocab)
  count = int(np.prod(list(shape.values())))
  mesh = make_mesh(MeshConfig(**shape), jax.devices()[:count])
  where = shardings({f"connector/{k}": v for k, v in values.items()
                     if k != "h"}, mesh)
  layout = Layout(mesh)
  placed = [jax.device_put(v, where.get(
      f"connector/{k}", NamedSharding(mesh, layout.spec("b"))))
            for k, v in values.items()]
  want = _grads("plain", **_kept(kept))(*values.values())
  with jax.set_mesh(mesh):
    got = _grads("stream", layout, **_kept(kept))(*placed)
  _assert_same(got, want)


@pytest.mark.parametrize("vocab", [24, 21])
def test_words_over_four_devices_meet_in_three_all_reduces(vocab):
  mesh = make_mesh(MeshConfig(data=1, tensor=4), jax.devices()[:4])
  table = NamedSharding(mesh, P(None if vocab % 4 else "tensor"))
  whole = NamedSharding(mesh, P())
  args = [jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=(
      table if k in ("w2_vd", "embed_vd") else whole))
          for k, v in _inputs(vocab).items()]
  with jax.set_mesh(mesh):
    text = jax.jit(functools.partial(
        vocab_mix, form="stream", chunk=7, layout=Layout(mesh))).lower(
            *args).compile().as_text()
  assert len(re.findall(r" all-reduce(?:-start)?\(", text)) <= 3
  assert not re.search(r" (all-gather|all-to-all)(?:-start)?\(", text)


def test_no_array_of_tokens_by_words_is_held():
  n, v, d = 256, 4000, 16
  compiled = jax.jit(functools.partial(
      gradients, "stream", (0,), Layout())).lower(*shapes(n, v, d)).compile()
  held = compiled.memory_analysis().temp_size_in_bytes
  wide = jax.jit(functools.partial(
      gradients, "plain", (0,), Layout())).lower(*shapes(n, v, d)).compile()
  assert wide.memory_analysis().temp_size_in_bytes > 4 * n * v
  # Three arrays of a chunk, and little else.
  assert held < 4 * 4 * n * 1536
  assert f"[{n},{v}]" not in compiled.as_text()


def test_only_wanted_gradients_are_computed():
  values = list(_inputs().values())
  args = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values]
  flops = lambda argnums: _grads("stream", argnums=argnums, chunk=24).lower(
      *args).compile().cost_analysis()["flops"]
  everything, h_alone, h_and_w = (
      flops(a) for a in (range(5), [0], [0, 1]))
  product = 2 * 24 * 24 * 8  # 2 N V D
  assert everything - h_alone > 1.9 * product
  assert everything - h_and_w > 0.9 * product
  want = _grads("plain", argnums=[2, 3])(*values)
  _assert_same(_grads("stream", argnums=[2, 3])(*values), want)


def test_few_tokens_need_no_gram_matrix():
  values = _inputs(rows=1, tokens=3, width=64)
  grads = lambda form: jax.jit(jax.value_and_grad(
      lambda *a: (vocab_mix(*a, form=form, chunk=7) ** 2).sum(),
      argnums=tuple(range(5))))(*values.values())
  _assert_same(grads("stream"), grads("plain"))


def test_norms_without_affine():
  values = _inputs()
  run = lambda form: vocab_mix(values["h"], values["w2_vd"], None, None,
                               values["embed_vd"], form=form, chunk=7)
  np.testing.assert_allclose(run("stream"), run("plain"), rtol=1e-5,
                             atol=1e-6)


def test_bf16_is_as_near_to_the_exact_mix_as_the_plain_form():
  values = _inputs(vocab=500, width=32, out=32)
  exact = vocab_mix(*values.values(), form="plain")
  low = {k: v.astype(jnp.bfloat16) if k[0] in "hwe" else v
         for k, v in values.items()}
  off = {form: np.linalg.norm(exact - vocab_mix(
      *low.values(), form=form).astype("f")) for form in ("plain", "stream")}
  assert off["stream"] < 1.5 * off["plain"]
  assert off["stream"] < 0.02 * np.linalg.norm(exact - exact.mean((0, 1)))


def test_nan_features_reach_their_own_token_alone():
  values = _inputs()
  clean = vocab_mix(*values.values(), form="stream", chunk=7)
  values["h"][2, 1, 3] = np.nan
  out = np.asarray(vocab_mix(*values.values(), form="stream", chunk=7))
  assert np.isnan(out[2, 1]).all()
  others = np.isfinite(out).all(-1)
  assert others.sum() == others.size - 1
  np.testing.assert_array_equal(out[others], np.asarray(clean)[others])


def test_auto_is_plain_for_few_logits_and_streams_many():
  def text(tokens, vocab):
    h = jax.ShapeDtypeStruct((1, tokens, 8), jnp.float32)
    table = jax.ShapeDtypeStruct((vocab, 8), jnp.float32)
    vector = jax.ShapeDtypeStruct((vocab,), jnp.float32)
    return str(jax.make_jaxpr(vocab_mix)(h, table, vector, vector, table))

  assert "custom_vjp" not in text(8, 1000)
  assert "custom_vjp" in text(1024, 32_000)


def test_tables_of_two_vocabularies_and_unknown_forms_are_refused():
  values = _inputs()
  other = values | {"embed_vd": values["embed_vd"][:20]}
  with pytest.raises(ValueError, match="W2 has 24 words, E has 20 words"):
    vocab_mix(*other.values())
  with pytest.raises(ValueError, match="did you mean 'stream'"):
    vocab_mix(*values.values(), form="streams")
