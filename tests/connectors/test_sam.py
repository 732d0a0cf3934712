"""SAM: what is said of it in its paper and its code holds, case by case."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.connectors import CONNECTORS
from align_jax.connectors.qformer import image_keys
from align_jax.connectors.sam import PRESETS
from align_jax.errors import InputError
from align_jax.hub.keymaps import qformer as maps
from align_jax.train.select import flatten
from tests.connectors import published, sam_slowly

C, D, E, T, P, LENGTH, WORDS, HEADS = 6, 7, 8, 2, 4, 3, 11, 2
SMALL = dict(queries=T, width=E, heads=HEADS, mlp_width=12, words=WORDS,
             positions=LENGTH, instruction_length=LENGTH)

# Row 0: one prompt of three images. Row 1: two prompts, one with an image
# alone. Row 2: an image alone and empty slots. Row 3: nothing.
SEGMENTS = np.array([[1, 1, 1], [1, 1, 2], [2, 0, 0], [0, 0, 0]], "i")


def _batch(segments=SEGMENTS, samples=2, seed=0):
  rng = np.random.default_rng(seed)
  features = rng.normal(size=(*segments.shape, P, C)).astype("f")
  ids = rng.integers(1, WORDS, (len(segments), samples, LENGTH)).astype("i")
  ids[0, 0, 2:] = 0
  return features, published.context(segments, D, instruction=ids)


def _module(name="sam", depth=12, **options):
  return published.make(name, D, depth=depth, **(SMALL | options))


@functools.cache
def _tensors(depth=12):
  """A random Q-Former in transformers' names, and SAM's six."""
  shapes = {"query_tokens": (1, T, E),
            "language_projection.weight": (D, E),
            "language_projection.bias": (D,),
            "qformer.embeddings.word_embeddings.weight": (WORDS, E),
            "qformer.embeddings.position_embeddings.weight": (LENGTH, E),
            "qformer.embeddings.layernorm.weight": (E,),
            "qformer.embeddings.layernorm.bias": (E,)}
  for n in range(depth):
    at = f"qformer.encoder.layer.{n}."
    for part, memory in (("attention", E), ("crossattention", C)):
      if part == "crossattention" and n % 2:
        continue
      for name, width in (("attention.query", E), ("attention.key", memory),
                          ("attention.value", memory), ("output.dense", E)):
        shapes |= {f"{at}{part}.{name}.weight": (E, width),
                   f"{at}{part}.{name}.bias": (E,)}
      shapes |= {f"{at}{part}.output.LayerNorm.weight": (E,),
                 f"{at}{part}.output.LayerNorm.bias": (E,)}
    for kind in ("", "_query"):
      shapes |= {f"{at}intermediate{kind}.dense.weight": (12, E),
                 f"{at}intermediate{kind}.dense.bias": (12,),
                 f"{at}output{kind}.dense.weight": (E, 12),
                 f"{at}output{kind}.dense.bias": (E,),
                 f"{at}output{kind}.LayerNorm.weight": (E,),
                 f"{at}output{kind}.LayerNorm.bias": (E,)}
  shapes |= {"attn.weight": (1, C), "attn.bias": (1,)}
  for name in ("one_2_muliple.0", "multiple_2_one.0"):
    shapes |= {f"{name}.weight": (E, E), f"{name}.bias": (E,)}
  tensors = published.random_tensors(shapes)
  for name, value in tensors.items():
    if "LayerNorm.weight" in name or "layernorm.weight" in name:
      tensors[name] = 1 + 0.3 * np.abs(value)
    if ".query.weight" in name or ".key.weight" in name:
      tensors[name] = value * 2
  tensors["attn.weight"] = tensors["attn.weight"] * 2
  return tensors


def _params(module, features, ctx, depth=12, drop=()):
  shapes = published.shapes_of(module, features, ctx)
  tensors = {k: v for k, v in _tensors(depth).items()
             if "guidance/h_eo" in shapes or k.startswith(
                 ("qformer", "query_tokens", "language"))}
  return published.load(shapes, maps.SAM, tensors,
                        rename=maps.rename(depth=depth))


def _run(module, params, features, ctx):
  return np.asarray(published.apply(module, params, features, ctx).tokens)


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize("l,k,preset", [
    (3, 9, "paper"), slow(1, 1, "paper"), slow(12, 12, "paper"),
    slow(3, 9, "released_code"), slow(1, 1, "released_code"),
    (12, 12, "released_code")])
def test_every_image_is_what_loops_over_ragged_sets_give(l, k, preset):
  features, ctx = _batch()
  module = _module(preset=preset, layer_h=l, layer_c=k)
  got = _run(module, _params(module, features, ctx), features, ctx)
  exact = {n: v.astype("d") for n, v in _tensors().items()}
  ids = np.asarray(ctx.extras["instruction"])
  chosen = PRESETS[preset]
  plain = []
  for row, segments in enumerate(SEGMENTS):
    for sample in sorted(set(segments) - {0}):
      slots = np.flatnonzero(segments == sample)
      images = [features[row, n].astype("d") for n in slots]
      call = functools.partial(
          sam_slowly.prompt, ids=ids[row, sample - 1], w=exact, l=l, k=k,
          depth=12, heads=HEADS, others=chosen["memory"] == "others",
          guide_text=chosen["guide_text"])
      for n, want in zip(slots, call(images)):
        assert want.std() > 0.3
        assert np.abs(got[row, n] - want).max() < 1e-4 * max(1, want.std())
      if len(images) > 1:  # guidance is no detail
        plain.append(np.abs(call(images[:1])[0] - got[row, slots[0]]).max())
  assert min(plain) > 1e-2


@pytest.fixture(scope="module")
def shallow():
  """(features, context, SAM and its parameters) of three layers."""
  features, ctx = _batch()
  module = _module(depth=3, layer_h=2, layer_c=3, memory="others")
  return features, ctx, module, _params(module, features, ctx, depth=3)


def _zeroed(params):
  guidance = dict(params["guidance"])
  for name in ("h_eo", "h_bias_o", "c_eo", "c_bias_o"):
    guidance[name] = guidance[name] * 0
  return params | {"guidance": guidance}


@pytest.mark.parametrize("preset", [
    "recommended", slow("paper"), slow("released_code")])
def test_at_its_start_it_is_instructblip_bit_for_bit(preset):
  features, ctx = _batch()
  module = _module(preset=preset)
  params = _zeroed(_params(module, features, ctx))
  former = _module("qformer")
  plain = {k: v for k, v in params.items() if k != "guidance"}
  there = SEGMENTS > 0
  np.testing.assert_array_equal(_run(module, params, features, ctx)[there],
                                _run(former, plain, features, ctx)[there])
  fresh = module.init(jax.random.key(0), features, ctx.image_segment_ids > 0,
                      ctx)["params"]["guidance"]
  assert all((np.asarray(fresh[n]) == 0).all() for n in fresh
             if n[:2] in ("h_", "c_"))
  bound = C ** -0.5
  assert 0 < np.abs(fresh["score_c"]).max() <= bound


def test_an_image_alone_is_instructblip_bit_for_bit():
  features, ctx = _batch()
  module = _module()
  params = _params(module, features, ctx)
  plain = {k: v for k, v in params.items() if k != "guidance"}
  ours = _run(module, params, features, ctx)
  theirs = _run(_module("qformer"), plain, features, ctx)
  for row, slot in ((1, 2), (2, 0)):
    np.testing.assert_array_equal(ours[row, slot], theirs[row, slot])
  assert np.abs(ours[0] - theirs[0]).max() > 1e-2


def _gradient(module, params, features, ctx):
  def loss(params):
    out = module.apply({"params": params}, features,
                       ctx.image_segment_ids > 0, ctx).tokens
    shown = (ctx.image_segment_ids > 0)[..., None, None]
    return (jnp.where(shown, out, 0) ** 2).sum()
  return jax.jit(jax.grad(loss))(params)["guidance"]


def test_first_only_the_way_back_learns(shallow):
  features, ctx, module, params = shallow
  grads = _gradient(module, _zeroed(params), features, ctx)
  for name, grad in grads.items():
    moved = float(jnp.abs(grad).max())
    assert (moved > 1e-3) == (name in ("c_eo", "c_bias_o")), name
    assert moved == 0 or name in ("c_eo", "c_bias_o"), name
  later = _gradient(module, params, features, ctx)
  for name, grad in later.items():
    still = name == "score_bias"  # it cancels in the softmax
    assert (float(jnp.abs(grad).max()) < 1e-5) == still, name


def test_of_two_images_the_score_learns_nothing_with_others(shallow):
  features, ctx, module, params = shallow
  pairs = ctx.replace(image_segment_ids=jnp.asarray(
      [[1, 1, 0], [1, 1, 2], [1, 1, 0], [2, 2, 0]], jnp.int32))
  grads = _gradient(module, params, features, pairs)
  assert float(jnp.abs(grads["score_c"]).max()) == 0
  assert float(jnp.abs(grads["h_eo"]).max()) > 1e-3
  grads = _gradient(module.clone(memory="all"), params, features, pairs)
  assert float(jnp.abs(grads["score_c"]).max()) > 1e-4


def test_six_tensors_are_trained_of_the_published_size():
  module = CONNECTORS.get("sam")(dim_out=4096)
  features = jax.ShapeDtypeStruct((1, 2, 257, 1408), jnp.float32)
  ctx = published.context(np.ones((1, 2), "i"), 4,
                          instruction=np.zeros((1, 1, 128), "i"))
  shapes = flatten(jax.eval_shape(
      lambda f: module.init(jax.random.key(0), f, ctx.image_segment_ids > 0,
                            ctx), features)["params"])
  trained = {k: v.size for k, v in shapes.items() if k.startswith("guidance/")}
  assert len(trained) == 6
  assert sum(trained.values()) == 1_182_593
  rest = {k: v.size for k, v in shapes.items() if k not in trained}
  mapped = sum(v for k, v in rest.items() if k.startswith("out_"))
  assert mapped == 3_149_824
  assert rest["queries_te"] == 24_576
  # transformers' Q-Former with BERT's vocabulary and "[DEC]".
  assert sum(rest.values()) - mapped - rest["queries_te"] == 185_660_160


def test_the_order_of_images_is_that_of_their_tokens_alone(shallow):
  features, ctx, module, params = shallow
  whole = _run(module, params, features, ctx)
  others = features.copy()
  others[0, [1, 2]] = features[0, [2, 1]]
  np.testing.assert_allclose(_run(module, params, others, ctx)[0, 0],
                             whole[0, 0], rtol=1e-5, atol=1e-5)
  turned = features.copy()
  turned[0] = features[0, [2, 0, 1]]
  np.testing.assert_allclose(_run(module, params, turned, ctx)[0],
                             whole[0, [2, 0, 1]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory", ["others", slow("all")])
def test_empty_slots_and_other_prompts_change_nothing(shallow, memory):
  features, ctx, module, params = shallow
  module = module.clone(memory=memory)
  whole = _run(module, params, features, ctx)
  noise = features.copy()
  noise[2, 1:] = 1e3
  noise[3] = -1e3
  noise[1, 2] = 50.0  # another prompt's image
  seen = _run(module, params, noise, ctx)
  assert np.isfinite(seen).all()  # a row without images as well
  for row, slots in ((0, slice(3)), (1, slice(2)), (2, slice(1))):
    np.testing.assert_allclose(seen[row, slots], whole[row, slots], rtol=1e-5,
                               atol=1e-5)
  # Row 1's first prompt in a row of its own, with more room.
  ids = np.asarray(ctx.extras["instruction"])[1:2]
  apart = published.context(np.array([[1, 1, 0, 0]], "i"), D, instruction=ids)
  images = np.zeros((1, 4, P, C), "f")
  images[0, :2] = features[1, :2]
  np.testing.assert_allclose(_run(module, params, images, apart)[0, :2],
                             whole[1, :2], rtol=1e-5, atol=1e-5)


# Four images of a prompt alone in its row; and as in the recipe, where a row
# has room for a sample a slot, of which at most half are guided.
SHARED = (([[1, 1, 1, 1], [1, 1, 1, 0]], 1),
          ([[1, 1, 1, 2, 3, 3, 4, 4], [1, 2, 2, 3, 4, 5, 5, 0]], 8))


@pytest.mark.parametrize("segments, samples", SHARED)
def test_what_is_computed_once_a_prompt_is_what_was_computed_for_each(
    segments, samples):
  segments = np.array(segments, "i")
  features, ctx = _batch(segments, samples=samples)
  module = _module(depth=3, layer_h=3, layer_c=3, memory="all")
  params = _params(module, features, ctx, depth=3)
  once, each = (_run(module.clone(reuse=reuse), params, features, ctx)
                for reuse in (True, False))
  there = segments > 0
  np.testing.assert_allclose(once[there], each[there], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case, spared", [(0, 3 / 4), (1, 4 / 8)])
def test_compiled_flops_show_what_is_computed_once(case, spared):
  """Two layers of 3 + 3 are spared for three images of four, or four of eight.

  Products of a layer, in token times width squared, for 32 queries, 3 words and
  32 patches. The first attention is the same in both streams, so the compiler
  has it once for an image if it is not spared.
  """
  attend, feed, look = 4 * 35, 8 * 35, 2 * 32 + 2 * 32
  naive = 2 * (3 * (attend + feed) + 2 * look) - attend
  saved = (spared * (2 * (attend + feed) + look) - attend) / naive
  segments, samples = SHARED[case]
  segments = np.array(segments, "i")
  ctx = published.context(segments, D, instruction=np.ones(
      (len(segments), samples, LENGTH), "i"))
  features = np.zeros((*segments.shape, 32, 64), "f")
  flops = {}
  for reuse in (True, False):
    module = _module(depth=3, layer_h=3, layer_c=3, memory="all", reuse=reuse,
                     width=64, mlp_width=256, queries=32)
    start = functools.partial(module.init, jax.random.key(0))
    params = jax.eval_shape(start, features, segments > 0, ctx)
    flops[reuse] = jax.jit(module.apply).lower(
        params, features, segments > 0, ctx).compile().cost_analysis()["flops"]
  assert flops[True] / flops[False] == pytest.approx(1 - saved, abs=0.03)


def test_each_stream_and_slot_draws_its_own_dropout():
  _, ctx = _batch()
  keys = jax.random.split(jax.random.key(1), 2)
  drawn = [np.asarray(jax.random.key_data(image_keys(
      ctx.replace(keys=keys), slots, stream))).tolist()
           for stream, slots in ((0, 4), (1, 2), (2, 4))]
  every = [tuple(key) for keys in drawn for key in keys]
  assert len(set(every)) == len(every) == 2 * (4 + 2 + 4)


@pytest.mark.slow
def test_dropout_is_active_as_released_and_off_without_keys(shallow):
  features, ctx, module, params = shallow
  still = _run(module, params, features, ctx)
  keys = jax.random.split(jax.random.key(1), len(SEGMENTS))
  np.testing.assert_array_equal(
      still, _run(module, params, features, ctx.replace(keys=keys)))
  active = _module(preset="released_code", depth=3, layer_h=2, layer_c=3)
  first = _run(active, params, features, ctx.replace(keys=keys))
  again = _run(active, params, features, ctx.replace(keys=keys))
  np.testing.assert_array_equal(first, again)
  keys = keys[jnp.array([0, 2, 1, 3])]
  moved = _run(active, params, features, ctx.replace(keys=keys))
  np.testing.assert_array_equal(first[0], moved[0])  # its own key alone
  assert np.abs(first[1] - moved[1]).max() > 1e-2
  assert np.abs(first - _run(active, params, features, ctx)).max() > 1e-2


def test_elsewhere_is_the_last_row_that_has_images():
  segments = np.array([[1, 1], [0, 0], [1, 1], [0, 0]], "i")
  features, ctx = _batch(segments)
  module = _module(depth=2, layer_h=1, layer_c=2, memory="elsewhere")
  params = _params(module, features, ctx, depth=2)
  whole = _run(module, params, features, ctx)
  # Without the empty rows, which batches are filled up with, it is the same.
  rows = np.array([0, 2])
  ids = np.asarray(ctx.extras["instruction"])[rows]
  few = published.context(segments[rows], D, instruction=ids)
  np.testing.assert_allclose(_run(module, params, features[rows], few),
                             whole[rows], rtol=1e-5, atol=1e-5)
  moved = features.copy()
  moved[2] += 1.0
  assert np.abs(_run(module, params, moved, ctx)[0] - whole[0]).max() > 1e-3
  # A row alone reads nothing, and not itself.
  alone = published.context(segments[:1], D, instruction=ids[:1])
  assert np.isfinite(_run(module, params, features[:1], alone)).all()


def test_controls_read_another_memory(shallow):
  features, ctx, module, params = shallow
  tokens = {memory: _run(module.clone(memory=memory), params, features, ctx)
            for memory in ("all", "others", "self", "elsewhere")}
  for a in tokens:
    for b in tokens:
      if a < b:
        assert np.abs(tokens[a][0] - tokens[b][0]).max() > 1e-3, (a, b)


def test_an_image_given_twice_is_two_images(shallow):
  features, ctx, module, params = shallow
  twice = features.copy()
  twice[0, 1] = twice[0, 0]
  out = _run(module, params, twice, ctx)
  assert np.isfinite(out).all()
  np.testing.assert_allclose(out[0, 0], out[0, 1], rtol=1e-5, atol=1e-5)
  pair = twice.copy()
  alone = _run(module, params, pair, ctx.replace(
      image_segment_ids=jnp.asarray(SEGMENTS).at[0].set([1, 0, 0])))
  # Not the same as the image alone, which nothing guides.
  assert np.abs(alone[0, 0] - out[0, 0]).max() > 1e-3


@pytest.mark.parametrize("options,text", [
    (dict(preset="papers"), "did you mean 'paper'"),
    (dict(layer_h=9, layer_c=3), "1 <= layer_h <= layer_c <= 12"),
    (dict(layer_h=0), "layer_h = 0"),
    (dict(depth=6), "layer_c <= 6"),
])
def test_settings_that_mean_nothing_are_refused(options, text):
  with pytest.raises(InputError, match=text):
    CONNECTORS.get("sam").tokens_out(257, **options)


def test_a_memory_there_is_not_is_refused(shallow):
  features, ctx, module, params = shallow
  with pytest.raises(InputError, match="did you mean 'others'"):
    module.clone(memory="other").apply({"params": params}, features, None,
                                       ctx)


@pytest.mark.parametrize("form", ["openflamingo", slow("idefics2")])
def test_the_same_guidance_wraps_a_perceiver(form):
  """Ours, not the paper's."""
  features, ctx = _batch()
  options = dict(form=form, latents=3, depth=2, heads=2, kv_heads=1,
                 head_width=4)
  plain = published.make("perceiver", D, **options)
  module = published.make("guided_perceiver", D, **options)
  rng = np.random.default_rng(4)
  shapes = published.shapes_of(module, features, ctx)
  from align_jax.train.select import unflatten
  flat = {k: jnp.asarray(rng.normal(size=s.shape, scale=0.5), jnp.float32)
          for k, s in shapes.items()}
  params = unflatten(flat)
  own = {k: v for k, v in params.items() if k != "guidance"}
  ours, theirs = (_run(m, p, features, ctx)
                  for m, p in ((module, params), (plain, own)))
  for row, slot in ((1, 2), (2, 0)):  # alone
    np.testing.assert_allclose(ours[row, slot], theirs[row, slot], rtol=1e-5,
                               atol=1e-5)
  assert np.abs(ours[0] - theirs[0]).max() > 1e-2
  start = _run(module, _zeroed(params), features, ctx)
  np.testing.assert_allclose(start[SEGMENTS > 0], theirs[SEGMENTS > 0],
                             rtol=1e-5, atol=1e-5)
