"""Connectors of other projects, in numpy, the slow and obvious way.

Each follows the project's own file, named in its docstring, operation by
operation; weights have that project's names and torch's shapes. One image at a
time, float64.
"""

from math import erf

import numpy as np

Weights = dict[str, np.ndarray]


def gelu(x: np.ndarray) -> np.ndarray:
  return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def silu(x: np.ndarray) -> np.ndarray:
  return x / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
  e = np.exp(x - x.max())
  return e / e.sum()


def layer_norm(x: np.ndarray, w: Weights, name: str,
               eps: float = 1e-5) -> np.ndarray:
  """Over the last axis."""
  mean = x.mean(-1, keepdims=True)
  var = ((x - mean) ** 2).mean(-1, keepdims=True)
  return (x - mean) / np.sqrt(var + eps) * w[f"{name}.weight"] + (
      w[f"{name}.bias"])


def linear(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
  y = x @ w[f"{name}.weight"].T
  return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def conv2d(x: np.ndarray, w: Weights, name: str, stride: tuple[int, int],
           pad: int = 0, groups: int = 1) -> np.ndarray:
  """x [C,H,W] -> [O,H',W'], weight [O,C/groups,kh,kw]."""
  weight = w[f"{name}.weight"]
  out_channels, inner, kh, kw = weight.shape
  x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
  high = (x.shape[1] - kh) // stride[0] + 1
  wide = (x.shape[2] - kw) // stride[1] + 1
  out = np.zeros((out_channels, high, wide))
  for o in range(out_channels):
    first = o // (out_channels // groups) * inner
    for i in range(high):
      for j in range(wide):
        top, left = i * stride[0], j * stride[1]
        out[o, i, j] = (x[first:first + inner, top:top + kh, left:left + kw]
                        * weight[o]).sum()
    if f"{name}.bias" in w:
      out[o] += w[f"{name}.bias"][o]
  return out


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray,
           heads: int) -> np.ndarray:
  """[L,E], [S,E], [S,E] -> [L,E]; heads are consecutive columns."""
  width = q.shape[1] // heads
  out = np.zeros_like(q)
  for h in range(heads):
    part = slice(h * width, (h + 1) * width)
    for i in range(len(q)):
      scores = np.array([q[i, part] @ k[j, part] for j in range(len(k))])
      out[i, part] = softmax(scores * width ** -0.5) @ v[:, part]
  return out


def flamingo_resampler(x: np.ndarray, w: Weights, depth: int,
                       heads: int) -> np.ndarray:
  """open_flamingo/src/helpers.py, PerceiverResampler: [P,C] -> [T,C].

  One frame; no frame or media embeddings.
  """
  latents = w["latents"]
  for n in range(depth):
    media = layer_norm(x, w, f"layers.{n}.0.norm_media")
    inner = layer_norm(latents, w, f"layers.{n}.0.norm_latents")
    q = linear(inner, w, f"layers.{n}.0.to_q")
    kv = linear(np.concatenate([media, inner]), w, f"layers.{n}.0.to_kv")
    k, v = np.split(kv, 2, axis=1)
    latents = linear(attend(q, k, v, heads), w,
                     f"layers.{n}.0.to_out") + latents
    y = layer_norm(latents, w, f"layers.{n}.1.0")
    y = gelu(linear(y, w, f"layers.{n}.1.1"))
    latents = linear(y, w, f"layers.{n}.1.3") + latents
  return layer_norm(latents, w, "norm")


def h_reducer(x: np.ndarray, w: Weights, columns: int = 4) -> np.ndarray:
  """DocOwl1.5/mplug_docowl/model/visual_encoder.py: [P,C] -> [P/4 + 1,D].

  MplugDocOwlHReducerModel, after the class token is cut off.
  """
  patches, channels = x.shape
  side = int(patches ** 0.5)
  grid = x.T.reshape(channels, side, side)
  y = gelu(conv2d(grid, w, "reducer_before.0", (1, columns)))
  # B (X D) H W -> B D H (W X)
  wide = np.zeros((channels, side, side))
  for at in range(columns):
    for d in range(channels):
      for i in range(side):
        for j in range(side // columns):
          wide[d, i, j * columns + at] = y[at * channels + d, i, j]
  y = conv2d(wide, w, "reducer", (1, columns))
  y = linear(y.reshape(channels, -1).T, w, "visual_fc")
  return np.concatenate([y, w["vit_eos"].reshape(1, -1)])


def adaptive_average(x: np.ndarray, side: int) -> np.ndarray:
  """torch's AdaptiveAvgPool2d: [C,H,W] -> [C,side,side]."""
  _, high, wide = x.shape
  out = np.zeros((x.shape[0], side, side))
  for i in range(side):
    for j in range(side):
      rows = slice(i * high // side, -(-(i + 1) * high // side))
      cols = slice(j * wide // side, -(-(j + 1) * wide // side))
      out[:, i, j] = x[:, rows, cols].mean((1, 2))
  return out


def reg_block(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
  """timm/models/regnet.py, Bottleneck: [C,H,W] -> [O,H,W].

  As Honeybee asks for it: SiLU, a LayerNorm over channels at each place
  (timm's norm-and-activation form, eps 1e-5), groups of one channel, squeeze
  and excitation.
  """
  def normed(y: np.ndarray, part: str) -> np.ndarray:
    return np.moveaxis(layer_norm(np.moveaxis(y, 0, -1), w,
                                  f"{name}.{part}.bn"), -1, 0)

  one = (1, 1)
  y = silu(normed(conv2d(x, w, f"{name}.conv1.conv", one), "conv1"))
  y = silu(normed(conv2d(y, w, f"{name}.conv2.conv", one, pad=1,
                         groups=len(y)), "conv2"))
  squeezed = y.mean((1, 2), keepdims=True)
  squeezed = silu(conv2d(squeezed, w, f"{name}.se.fc1", one))
  squeezed = conv2d(squeezed, w, f"{name}.se.fc2", one)
  y = y / (1 + np.exp(-squeezed))
  y = normed(conv2d(y, w, f"{name}.conv3.conv", one), "conv3")
  shortcut = x
  if f"{name}.downsample.conv.weight" in w:
    shortcut = normed(conv2d(x, w, f"{name}.downsample.conv", one),
                      "downsample")
  return silu(y + shortcut)


def c_abstractor(x: np.ndarray, w: Weights, depth: int,
                 side: int) -> np.ndarray:
  """honeybee/projectors/projectors.py, CAbstractor: [P,C] -> [side^2,D]."""
  patches, channels = x.shape
  grid = int(patches ** 0.5)
  x = x + w["pos_emb"][0]
  y = x.T.reshape(channels, grid, grid)
  for n in range(depth):
    y = reg_block(y, w, f"net.0.b{n + 1}")
  y = adaptive_average(y, side)
  for n in range(depth):
    y = reg_block(y, w, f"net.2.b{n + 1}")
  y = y.reshape(len(y), -1).T
  return linear(silu(linear(y, w, "readout.0")), w, "readout.2")


def bilinear(grid: np.ndarray, x: float, y: float) -> np.ndarray:
  """torch's grid_sample (align_corners=False, zeros) of [H,W,K] at a place.

  x and y are shares of the width and the height; pixel i's centre is at
  (i + 0.5) / size.
  """
  high, wide = grid.shape[:2]
  x, y = x * wide - 0.5, y * high - 0.5
  left, top = int(np.floor(x)), int(np.floor(y))
  out = np.zeros(grid.shape[2])
  for i in (top, top + 1):
    for j in (left, left + 1):
      if 0 <= i < high and 0 <= j < wide:
        out += (1 - abs(x - j)) * (1 - abs(y - i)) * grid[i, j]
  return out


def d_abstractor(x: np.ndarray, w: Weights, depth: int, heads: int,
                 points: int) -> np.ndarray:
  """honeybee/projectors/dabs.py, DAbstractor: [P,C] -> [M,D].

  One feature level, pooled_v_target "query": the queries' positions are the
  pooled features, their contents are learned. Layers are those of
  transformers' Deformable DETR decoder.
  """
  if "input_proj.0.weight" in w:
    x = linear(x, w, "input_proj.0")
  x = x + w["v_pos_emb"][0]
  patches, width = x.shape
  grid, each = int(patches ** 0.5), width // heads
  hidden = w["query_position_embeddings.weight"]
  side = int(len(hidden) ** 0.5)
  places = adaptive_average(x.T.reshape(width, grid, grid), side)
  places = places.reshape(width, -1).T
  reference = w["reference_points"][0]
  for n in range(depth):
    at = f"layers.{n}."
    q = linear(hidden + places, w, at + "self_attn.q_proj")
    k = linear(hidden + places, w, at + "self_attn.k_proj")
    v = linear(hidden, w, at + "self_attn.v_proj")
    y = linear(attend(q, k, v, heads), w, at + "self_attn.out_proj")
    hidden = layer_norm(hidden + y, w, at + "self_attn_layer_norm")

    asking = hidden + places
    values = linear(x, w, at + "encoder_attn.value_proj")
    moves = linear(asking, w, at + "encoder_attn.sampling_offsets")
    shares = linear(asking, w, at + "encoder_attn.attention_weights")
    y = np.zeros_like(hidden)
    for m in range(len(hidden)):
      for h in range(heads):
        part = slice(h * each, (h + 1) * each)
        seen = values[:, part].reshape(grid, grid, each)
        share = softmax(shares[m, h * points:(h + 1) * points])
        for p in range(points):
          dx, dy = moves[m].reshape(heads, points, 2)[h, p]
          y[m, part] += share[p] * bilinear(
              seen, reference[m, 0] + dx / grid, reference[m, 1] + dy / grid)
    y = linear(y, w, at + "encoder_attn.output_proj")
    hidden = layer_norm(hidden + y, w, at + "encoder_attn_layer_norm")

    y = np.maximum(linear(hidden, w, at + "fc1"), 0)
    y = linear(y, w, at + "fc2")
    hidden = layer_norm(hidden + y, w, at + "final_layer_norm")
  return linear(hidden, w, "output_proj")
