"""Peers that transformers does not have, in numpy, one number at a time.

Written from the projects' own files, without a look at our modules; weights
carry the projects' names and layouts (a torch linear layer's weight is
[out, in], a convolution's [out, in / groups, rows, columns]).

  h_reducer     X-PLUG/mPLUG-DocOwl, DocOwl1.5/mplug_docowl/model/
                visual_encoder.py, MplugDocOwlHReducerModel
  c_abstractor  khanrc/honeybee, honeybee/projectors.py, CAbstractor; its
                blocks are timm/models/regnet.py's Bottleneck
  d_abstractor  the same file, DAbstractor (one feature level,
                pooled_v_target "query"); its layers are Deformable DETR's
  resampler     mlfoundations/open_flamingo, open_flamingo/src/helpers.py
  visual_words  AIDC-AI/Ovis@f3f7f2e, ovis/model/visual_tokenizer/
                base_visual_tokenizer.py: encode and forward

Features are f[P,C] of one image, patches row by row.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

Weights = Mapping[str, np.ndarray]


def linear(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
  y = np.asarray(x, np.float64) @ w[f"{name}.weight"].T
  return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def layer_norm(x: np.ndarray, w: Weights, name: str,
               eps: float = 1e-5) -> np.ndarray:
  """Over the last axis."""
  out = np.zeros(x.shape, np.float64)
  for at in np.ndindex(x.shape[:-1]):
    row = np.asarray(x[at], np.float64)
    spread = np.sqrt(((row - row.mean()) ** 2).mean() + eps)
    out[at] = (row - row.mean()) / spread * w[f"{name}.weight"] + (
        w[f"{name}.bias"])
  return out


def gelu(x: np.ndarray) -> np.ndarray:
  return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def sigmoid(x: np.ndarray) -> np.ndarray:
  return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
  return x * sigmoid(x)


def softmax(x: np.ndarray) -> np.ndarray:
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def square(features: np.ndarray) -> np.ndarray:
  """f[P,C] -> f[C,H,W]."""
  side = math.isqrt(len(features))
  return features.reshape(side, side, -1).transpose(2, 0, 1)


def tokens(picture: np.ndarray) -> np.ndarray:
  """f[C,H,W] -> f[H*W,C]."""
  return picture.reshape(len(picture), -1).T


def strided(x: np.ndarray, weight: np.ndarray,
            bias: np.ndarray) -> np.ndarray:
  """A convolution whose stride is its kernel: f[C,H,W] -> f[O,H/h,W/w]."""
  out, _, h, w = weight.shape
  y = np.zeros((out, x.shape[1] // h, x.shape[2] // w))
  for o, i, j in np.ndindex(y.shape):
    y[o, i, j] = (x[:, i * h:(i + 1) * h, j * w:(j + 1) * w]
                  * weight[o]).sum() + bias[o]
  return y


def h_reducer(features: np.ndarray, w: Weights,
              shape: tuple[int, int] = (1, 4)) -> np.ndarray:
  """f[P,C] -> f[P/X+1,D], X = shape's product."""
  x = square(features)
  mixed = gelu(strided(x, w["reducer_before.0.weight"],
                       w["reducer_before.0.bias"]))
  # "B (X D) H W -> B D H (W X)"
  every = shape[0] * shape[1]
  wide = mixed.shape[0] // every
  back = np.zeros((wide, mixed.shape[1], mixed.shape[2] * every))
  for k, d, i, j in np.ndindex(every, wide, *mixed.shape[1:]):
    back[d, i, j * every + k] = mixed[k * wide + d, i, j]
  reduced = strided(back, w["reducer.weight"], w["reducer.bias"])
  out = linear(tokens(reduced), w, "visual_fc")
  return np.concatenate([out, w["vit_eos"].reshape(1, -1)])


def pool(x: np.ndarray, side: int) -> np.ndarray:
  """Adaptive average pooling, f[C,H,W] -> f[C,side,side]."""
  out = np.zeros((len(x), side, side))
  for i in range(side):
    rows = slice(i * x.shape[1] // side, -(-(i + 1) * x.shape[1] // side))
    for j in range(side):
      columns = slice(j * x.shape[2] // side, -(-(j + 1) * x.shape[2] // side))
      out[:, i, j] = x[:, rows, columns].mean((1, 2))
  return out


def conv_norm(x: np.ndarray, w: Weights, name: str,
              act: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
  """timm's ConvNormAct of stride 1 without bias.

  Asked for LayerNorm2d it takes LayerNormAct2d (timm/layers/norm_act.py),
  whose eps is 1e-5. A 3 x 3 kernel is one for each channel (groups of one).
  """
  weight = w[f"{name}.conv.weight"]
  if weight.shape[2] == 1:
    y = np.einsum("oc,chw->ohw", weight[:, :, 0, 0], x)
  else:
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1)])
    y = np.zeros(x.shape)
    for c, i, j in np.ndindex(x.shape):
      y[c, i, j] = (padded[c, i:i + 3, j:j + 3] * weight[c, 0]).sum()
  return act(layer_norm(y.transpose(1, 2, 0), w, f"{name}.bn")
             .transpose(2, 0, 1))


def bottleneck(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
  same = lambda y: y
  y = conv_norm(x, w, f"{name}.conv1", silu)
  y = conv_norm(y, w, f"{name}.conv2", silu)
  squeezed = y.mean((1, 2))
  gate = w[f"{name}.se.fc1.weight"][:, :, 0, 0] @ squeezed
  gate = silu(gate + w[f"{name}.se.fc1.bias"])
  gate = w[f"{name}.se.fc2.weight"][:, :, 0, 0] @ gate
  y = y * sigmoid(gate + w[f"{name}.se.fc2.bias"])[:, None, None]
  y = conv_norm(y, w, f"{name}.conv3", same)
  if f"{name}.downsample.conv.weight" in w:
    x = conv_norm(x, w, f"{name}.downsample", same)
  return silu(y + x)


def c_abstractor(features: np.ndarray, w: Weights, queries: int, depth: int,
                 mlp_depth: int) -> np.ndarray:
  """f[P,C] -> f[queries,D]; no class token, no end tokens."""
  x = square(features + w["pos_emb"][0])
  for block in range(depth):
    x = bottleneck(x, w, f"net.0.b{block + 1}")
  x = pool(x, math.isqrt(queries))
  for block in range(depth):
    x = bottleneck(x, w, f"net.2.b{block + 1}")
  y = linear(tokens(x), w, "readout.0")
  for layer in range(1, mlp_depth):
    y = linear(silu(y), w, f"readout.{2 * layer}")
  return y


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray,
           heads: int) -> np.ndarray:
  """Heads side by side in the last axis; scaled by 1 / sqrt(head width)."""
  out, width = np.zeros((len(q), v.shape[1])), q.shape[1] // heads
  for head in range(heads):
    part = slice(head * width, (head + 1) * width)
    out[:, part] = softmax(
        q[:, part] @ k[:, part].T / math.sqrt(width)) @ v[:, part]
  return out


def bilinear(x: np.ndarray, across: float, down: float) -> np.ndarray:
  """x f[C,H,W] at (across, down) in [0,1]; zeros outside.

  As torch's grid_sample with align_corners false: the middle of the first
  cell lies at half a cell.
  """
  across, down = across * x.shape[2] - 0.5, down * x.shape[1] - 0.5
  left, top = math.floor(across), math.floor(down)
  total = np.zeros(len(x))
  for i in (top, top + 1):
    for j in (left, left + 1):
      if 0 <= i < x.shape[1] and 0 <= j < x.shape[2]:
        total += (1 - abs(down - i)) * (1 - abs(across - j)) * x[:, i, j]
  return total


def deformable(query: np.ndarray, places: np.ndarray, features: np.ndarray,
               w: Weights, name: str, heads: int, points: int) -> np.ndarray:
  """Deformable DETR's attention on one level.

  query f[Q,D]; places f[Q,2] (across, down) in [0,1]; features f[P,D].
  """
  value = linear(features, w, f"{name}.value_proj")
  side, width = math.isqrt(len(features)), value.shape[1] // heads
  offsets = linear(query, w, f"{name}.sampling_offsets")
  offsets = offsets.reshape(len(query), heads, points, 2)
  weights = softmax(linear(query, w, f"{name}.attention_weights").reshape(
      len(query), heads, points))
  out = np.zeros((len(query), value.shape[1]))
  for q, h, p in np.ndindex(len(query), heads, points):
    part = slice(h * width, (h + 1) * width)
    where = places[q] + offsets[q, h, p] / side
    out[q, part] += weights[q, h, p] * bilinear(square(value[:, part]), *where)
  return linear(out, w, f"{name}.output_proj")


def d_abstractor(features: np.ndarray, w: Weights, layers: int, heads: int,
                 points: int) -> np.ndarray:
  """f[P,C] -> f[Q,D]; no class token, no end tokens.

  The positions of the queries are the pooled features; what they start from
  is learnt ("query_position_embeddings", in spite of the name).
  """
  x = features
  if "input_proj.0.weight" in w:  # where the widths differ
    x = linear(x, w, "input_proj.0")
  x = x + w["v_pos_emb"][0]
  state = w["query_position_embeddings.weight"]
  places = w["reference_points"][0]
  positions = tokens(pool(square(x), math.isqrt(len(state))))
  for i in range(layers):
    name = f"layers.{i}"
    q, k = (linear(state + positions, w, f"{name}.self_attn.{p}_proj")
            for p in "qk")
    v = linear(state, w, f"{name}.self_attn.v_proj")
    mixed = linear(attend(q, k, v, heads), w, f"{name}.self_attn.out_proj")
    state = layer_norm(state + mixed, w, f"{name}.self_attn_layer_norm")
    seen = deformable(state + positions, places, x, w, f"{name}.encoder_attn",
                      heads, points)
    state = layer_norm(state + seen, w, f"{name}.encoder_attn_layer_norm")
    inner = np.maximum(linear(state, w, f"{name}.fc1"), 0)
    state = layer_norm(state + linear(inner, w, f"{name}.fc2"), w,
                 f"{name}.final_layer_norm")
  return linear(state, w, "output_proj")


def resampler(features: np.ndarray, w: Weights, depth: int,
              heads: int) -> np.ndarray:
  """OpenFlamingo's, f[P,C] -> f[latents,C]: one frame, no time embeddings."""
  latents = w["latents"]
  for i in range(depth):
    media = layer_norm(features, w, f"layers.{i}.0.norm_media")
    own = layer_norm(latents, w, f"layers.{i}.0.norm_latents")
    q = linear(own, w, f"layers.{i}.0.to_q")
    k, v = np.split(linear(np.concatenate([media, own]), w,
                           f"layers.{i}.0.to_kv"), 2, axis=-1)
    latents = latents + linear(attend(q, k, v, heads), w,
                               f"layers.{i}.0.to_out")
    y = linear(layer_norm(latents, w, f"layers.{i}.1.0"), w,
               f"layers.{i}.1.1")
    latents = latents + linear(gelu(y), w, f"layers.{i}.1.3")
  return layer_norm(latents, w, "norm")


def merged(features: np.ndarray, stride: int) -> np.ndarray:
  """f[P,C] -> f[ceil(side/stride)^2, stride^2*C], zeros below and right."""
  side, width = math.isqrt(len(features)), features.shape[1]
  cells = -(-side // stride)
  out = np.zeros((cells * cells, stride * stride * width))
  for i, j, a, b in np.ndindex(cells, cells, stride, stride):
    y, x = i * stride + a, j * stride + b
    if y < side and x < side:
      at = (a * stride + b) * width
      out[i * cells + j, at:at + width] = features[y * side + x]
  return out


def visual_words(features: np.ndarray, w: Weights, stride: int,
                 indicators: int = 5) -> np.ndarray:
  """Ovis: f[P,C] -> f[T,D].

  "vte" f[words,D] is the embedding table; its last rows are the indicators,
  which no image token has a share of.
  """
  x = merged(features, stride)
  shares = softmax(layer_norm(linear(x, w, "head.0"), w, "head.1"))
  return np.pad(shares, [(0, 0), (0, indicators)]) @ w["vte"]
