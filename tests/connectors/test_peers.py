"""Connectors of other projects do what those projects' files say.

The references (upstream.py) were written without a look at ours: they have the
projects' names and shapes; hub/keymaps brings their weights over.
"""

import numpy as np
import pytest

from align_jax.connectors import CONNECTORS
from align_jax.connectors.grid import pooling
from align_jax.errors import InputError
from align_jax.hub.keymaps import connectors as maps
from tests import tiny
from tests.connectors import published, upstream

C, D = 6, 10


def _compare(name, options, rules, tensors, reference, patches, **family):
  """Two rows of two images against the reference, image by image."""
  rng = np.random.default_rng(5)
  features = rng.normal(size=(2, 2, patches, C)).astype("f")
  ctx = published.context(np.ones((2, 2), "i"), D)
  module = published.make(name, D, **options)
  shapes = published.shapes_of(module, features, ctx)
  params = published.load(shapes, rules, tensors, **family)
  got = np.asarray(published.apply(module, params, features, ctx).tokens)
  assert got.shape == (2, 2, module.tokens_out(patches, **options), D)
  exact = {k: v.astype("d") for k, v in tensors.items()}
  for b, n in ((0, 0), (1, 1)):
    want = reference(features[b, n].astype("d"), exact)
    assert want.std() > 0.3
    np.testing.assert_allclose(got[b, n], want, rtol=1e-4,
                               atol=1e-4 * max(1.0, want.std()))


def test_perceiver_is_open_flamingos():
  heads, width, depth, latents = 2, 4, 2, 3
  shapes = {"latents": (latents, C), "norm.weight": (C,), "norm.bias": (C,)}
  for n in range(depth):
    at = f"layers.{n}."
    for norm in ("0.norm_media", "0.norm_latents", "1.0"):
      shapes |= {f"{at}{norm}.weight": (C,), f"{at}{norm}.bias": (C,)}
    shapes |= {at + "0.to_q.weight": (heads * width, C),
               at + "0.to_kv.weight": (2 * heads * width, C),
               at + "0.to_out.weight": (C, heads * width),
               at + "1.1.weight": (4 * C, C), at + "1.3.weight": (C, 4 * C)}
  # The map to the LLM's width is ours; the reference ends before it.
  ours = {"ours.weight": (D, C), "ours.bias": (D,)}
  tensors = published.random_tensors(shapes | ours)
  for n in range(depth):
    for part in ("0.norm_media", "0.norm_latents", "1.0"):
      tensors[f"layers.{n}.{part}.weight"] = 1 + 0.3 * tensors[
          f"layers.{n}.{part}.weight"]
  rules = maps.PERCEIVER_FLAMINGO | maps.dense("out", "ed", "out_bias",
                                               "ours")

  def reference(x, w):
    y = upstream.resampler(x, w, depth, heads)
    return upstream.linear(y, w, "ours")

  _compare("perceiver", dict(latents=latents, depth=depth, heads=heads,
                             head_width=width),
           rules, tensors, reference, patches=5)


def test_h_reducer_is_docowls():
  shapes = {"reducer_before.0.weight": (4 * C, C, 1, 4),
            "reducer_before.0.bias": (4 * C,),
            "reducer.weight": (C, C, 1, 4), "reducer.bias": (C,),
            "visual_fc.weight": (D, C), "visual_fc.bias": (D,),
            "vit_eos": (1, 1, D), "ln_q.weight": (C,), "ln_q.bias": (C,)}
  _compare("h_reducer", {}, maps.H_REDUCER, published.random_tensors(shapes),
           upstream.h_reducer, patches=64, ignored=maps.H_REDUCER_IGNORED)


@pytest.mark.parametrize("width", [
    8, pytest.param(C, marks=pytest.mark.slow)])
def test_c_abstractor_is_honeybees(width):
  depth, patches = 2, 25
  shapes = {"pos_emb": (1, patches, C)}
  for stage in (0, 2):
    for n in range(1, depth + 1):
      at = f"net.{stage}.b{n}."
      c = C if stage == 0 and n == 1 else width
      s = round(c / 4)
      shapes |= {at + "conv1.conv.weight": (width, c, 1, 1),
                 at + "conv2.conv.weight": (width, 1, 3, 3),
                 at + "conv3.conv.weight": (width, width, 1, 1),
                 at + "se.fc1.weight": (s, width, 1, 1),
                 at + "se.fc1.bias": (s,),
                 at + "se.fc2.weight": (width, s, 1, 1),
                 at + "se.fc2.bias": (width,)}
      norms = ["conv1", "conv2", "conv3"]
      if c != width:
        shapes[at + "downsample.conv.weight"] = (width, c, 1, 1)
        norms.append("downsample")
      for norm in norms:
        shapes |= {f"{at}{norm}.bn.weight": (width,),
                   f"{at}{norm}.bn.bias": (width,)}
  shapes |= {"readout.0.weight": (D, width), "readout.0.bias": (D,),
             "readout.2.weight": (D, D), "readout.2.bias": (D,)}
  _compare("c_abstractor", dict(latents=9, width=width, depth=depth),
           maps.C_ABSTRACTOR, published.random_tensors(shapes),
           lambda x, w: upstream.c_abstractor(x, w, 9, depth, 2), patches,
           rename=maps.rename_reg(widened=width != C))


@pytest.mark.parametrize("width", [
    8, pytest.param(C, marks=pytest.mark.slow)])
def test_d_abstractor_is_honeybees(width):
  depth, heads, points, patches, latents, f = 2, 2, 3, 25, 4, 12
  shapes = {"v_pos_emb": (1, patches, width),
            "query_position_embeddings.weight": (latents, width),
            "reference_points": (1, latents, 2),
            "output_proj.weight": (D, width), "output_proj.bias": (D,)}
  if width != C:
    shapes |= {"input_proj.0.weight": (width, C), "input_proj.0.bias": (width,)}
  for n in range(depth):
    at = f"layers.{n}."
    linear = {"self_attn." + m: width for m in
              ("q_proj", "k_proj", "v_proj", "out_proj")}
    linear |= {"encoder_attn.value_proj": width,
               "encoder_attn.output_proj": width,
               "encoder_attn.sampling_offsets": heads * points * 2,
               "encoder_attn.attention_weights": heads * points}
    for name, size in linear.items():
      shapes |= {f"{at}{name}.weight": (size, width), f"{at}{name}.bias": (
          size,)}
    shapes |= {at + "fc1.weight": (f, width), at + "fc1.bias": (f,),
               at + "fc2.weight": (width, f), at + "fc2.bias": (width,)}
    for norm in ("self_attn_layer_norm", "encoder_attn_layer_norm",
                 "final_layer_norm"):
      shapes |= {f"{at}{norm}.weight": (width,), f"{at}{norm}.bias": (width,)}
  tensors = published.random_tensors(shapes)
  # Inside, at the edge and outside of the image: beyond it are zeros.
  tensors["reference_points"] = np.array(
      [[[0.5, 0.4], [0.02, 0.9], [1.1, 0.3], [0.25, -0.1]]], "f")
  _compare("d_abstractor", dict(latents=latents, width=width, depth=depth,
                                heads=heads, points=points, mlp_width=f),
           maps.D_ABSTRACTOR, tensors,
           lambda x, w: upstream.d_abstractor(x, w, depth, heads, points),
           patches)


@pytest.mark.parametrize("stride,patches", [(2, 25), (1, 9)])
def test_ovis_is_ovis_1_6s(stride, patches):
  """A grid that the stride does not divide has zeros below and right."""
  words = 12
  shapes = {"head.0.weight": (words - 5, stride**2 * C),
            "head.1.weight": (words - 5,), "head.1.bias": (words - 5,),
            "vte": (words, D)}
  tensors = published.random_tensors(shapes)
  tensors["head.1.weight"] = 2 + tensors["head.1.weight"]
  rules = {"head_cv": ("head.0.weight", "v c -> c v"),
           "norm_scale_v": ("head.1.weight", "v -> v"),
           "norm_bias_v": ("head.1.bias", "v -> v"),
           "table_vd": ("vte", "v d -> v d")}
  _compare("ovis", dict(words=words, stride=stride), rules, tensors,
           lambda x, w: upstream.visual_words(x, w, stride), patches)


def test_pooling_is_torchs_adaptive_average():
  rng = np.random.default_rng(0)
  for side, out in ((24, 12), (16, 12), (5, 3), (27, 12), (3, 5)):
    x = rng.normal(size=(1, side, side))
    matrix = pooling(side, out)
    np.testing.assert_allclose(matrix @ x[0] @ matrix.T,
                               upstream.pool(x, out)[0],
                               atol=1e-5)


@pytest.mark.parametrize("name,patches,options,text", [
    ("pixel_shuffle", 729, {}, "27 x 27 patches"),
    ("pixel_shuffle", 729, dict(factor=9, form="idefics"), "idefics3"),
    ("pixel_shuffle", 257, {}, "class_token=False"),
    ("h_reducer", 729, {}, "joins 4 patches"),
    ("h_reducer", 12, {}, "square grid"),
    ("ovis", 257, {}, "class_token=False"),
    ("c_abstractor", 257, {}, "class_token=False"),
    ("c_abstractor", 256, dict(latents=32), "not 32"),
    ("d_abstractor", 256, dict(latents=32), "not 32"),
    ("perceiver", 256, dict(form="idefics3"), "did you mean 'idefics2'"),
])
def test_what_does_not_fit_is_refused_before_anything_is_made(
    name, patches, options, text):
  with pytest.raises(InputError, match=text):
    CONNECTORS.get(name).tokens_out(patches, **options)


def test_ovis_indicators_frame_an_image_in_what_the_decoder_reads():
  model = tiny.tiny_vlm("ovis", words=20, stride=2)
  batch = tiny.random_batch(rows=1, images=(1,))
  params = tiny.tiny_params(model, batch)
  slots, frame = 2, CONNECTORS.get("ovis").frame()
  # A row's bank: a token for each of two slots, then the specials.
  shown = [slots + x for x in frame.before] + [0] + [
      slots + x for x in (*frame.whole, *frame.after)]
  index = np.array([[-1, *shown, -1]], np.int32)
  tokens = np.full((1, 6), 7, np.int32)

  def read(m):
    visual = m.encode_images(batch)
    return m.embed(tokens, index, visual), visual.tokens

  x, visual = model.apply({"params": params}, method=read)
  table = np.asarray(params["connector"]["table_vd"])
  word = np.asarray(params["decoder"]["embed_vd"])[7]
  np.testing.assert_allclose(x[0], np.stack([
      word, table[15], visual[0, 0, 0], table[16], table[19], word]),
      rtol=1e-6)


def test_published_token_counts():
  count = lambda name, patches, **options: CONNECTORS.get(name).tokens_out(
      patches, **options)
  assert count("pixel_shuffle", 1024) == 256  # InternVL, 448 pixels
  assert count("pixel_shuffle", 729, form="idefics3", factor=3) == 81
  assert count("h_reducer", 1024) == 257  # DocOwl 1.5, with its end
  assert count("ovis", 729) == 196  # SigLIP-so400m at 384: 27 made 28
  assert count("perceiver", 729, form="idefics2") == 64
  assert count("c_abstractor", 576) == count("d_abstractor", 576) == 144
