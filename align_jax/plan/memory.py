"""Bytes a device by sizes alone, without compiling.

What lies there all the time follows from shapes and shardings exactly. What
comes and goes is the most that any of five moments of a step needs:

  head        the head gathered, logits of one chunk and the head's gradient
  decoder     one layer's intermediates and gathered weights, the gradients of
              the stack, the head's, which is not summed over devices yet
  connector   its intermediates; for ALIGN, V-sized ones
  tower       as the decoder
  update      all gradients, the head's still whole

beside what was kept for the backward pass (a layer's input under "full").
This is what lives at one time. The compiler packs it into memory with gaps
between, a hundredth where memory is short, up to a third where there is
plenty; those are its choice and not predicted.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from align_jax.build import Parts
from align_jax.config import Config, StageConfig
from align_jax.ops.attention_chunked import SCORES
from align_jax.parallel.layout import ROWS
from align_jax.plan.cost import attention_form
from align_jax.train.select import base
from align_jax.train.state import TrainState

# Connectors of which no array that waits for the backward pass is forgotten.
# Compilers found 1.1 to 3.4 times the bytes predicted for others.
_COUNTED = ("linear", "mlp", "align")

# A TPU's registers hold so many numbers side by side.
_LANES = 128


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device.

  Attributes:
    temporaries: what the fullest moment of a step needs beside the rest.
    moments: what each needs beside parameters, optimizer and batch.
  """
  parameters: float
  optimizer: float
  gradients: float
  batch: float
  temporaries: float
  moments: Mapping[str, float]

  @property
  def total(self) -> float:
    return (self.parameters + self.optimizer + self.gradients + self.batch
            + self.temporaries)


def local_bytes(tree: Any, tiled: bool = False) -> float:
  """Bytes on one device of a tree of shapes with shardings.

  Args:
    tree: of ShapeDtypeStructs.
    tiled: as TPUs lay arrays out, in tiles of 8 x 128: two axes, those that
      lose least, are filled up to multiples of these.
  """
  return float(sum(
      _filled(s.sharding.shard_shape(s.shape), tiled) * s.dtype.itemsize
      for s in jax.tree.leaves(tree)))


def _filled(dims: tuple[int, ...], tiled: bool) -> int:
  """Numbers that an array takes room for."""
  if not tiled or len(dims) < 2:
    return math.prod(dims)
  up = lambda n, to: -(-n // to) * to / n
  return round(math.prod(dims) * min(
      up(dims[i], 128) * up(dims[j], 8)
      for i in range(len(dims)) for j in range(len(dims)) if i != j))


def predict(config: Config, stage: StageConfig, parts: Parts,
            state: TrainState, batch: Any, mesh: Mesh | AbstractMesh,
            tiled: bool = False) -> Memory:
  """Bytes a device of one stage's step; `tiled` as in `local_bytes`."""
  parameters = local_bytes((state.trained, state.frozen), tiled)
  optimizer = local_bytes((state.opt_state, state.step), tiled)
  gradients = local_bytes(state.trained, tiled)
  moments = (_Moments(config, stage, parts, state, dict(mesh.shape),
                      tiled).all()
             if config.model.kind == "vlm" else {"update": gradients})
  # Beside a batch a step is given a rate for each trainable, in f32; and the
  # eight bytes of a random key, where it draws.
  own = 4.0 * len(state.trained)
  return Memory(parameters, optimizer, gradients,
                local_bytes(batch, tiled) + own,
                max(max(moments.values()) - gradients, 0.0), moments)


def uncounted(config: Config, state: TrainState) -> str:
  """What a prediction leaves out that may be much; "" where nothing."""
  kind = config.model.connector.kind
  flows = any(key.startswith(("tower/", "connector/"))
              for key in state.trained)
  if config.model.kind != "vlm" or kind in _COUNTED or not flows:
    return ""
  return (f"what connector {kind!r} keeps for its backward pass is not "
          "counted; compiled steps took up to 3.4 times as much")


class _Moments:
  """What each moment needs; sizes in bytes, of one device."""

  def __init__(self, config: Config, stage: StageConfig, parts: Parts,
               state: TrainState, axes: Mapping[str, int], tiled: bool):
    self.config, self.stage, self.parts = config, stage, parts
    self.tiled = tiled
    self.axes, self.state = axes, state
    self.trained = {base(key) for key in state.trained}
    data = config.data
    micro = data.rows // stage.accumulate
    self.rows = micro / math.prod(axes[a] for a in ROWS)
    self.tokens = self.rows * data.row_length / axes["context"]
    self.images = micro * data.images_per_row / math.prod(axes.values())
    self.width = jnp.dtype(config.model.dtype).itemsize
    self.decoder = parts.model.decoder.config
    self.tower = parts.model.tower.config

  def all(self) -> dict[str, float]:
    """By name; gradients that are there by then are counted in."""
    head, table = self._head_gradient(), self._table()
    grads = {part: self._gradients(part)
             for part in ("decoder", "connector", "tower")}
    tables = self._kept_tables()
    kept = (self._kept_decoder() + self._kept_tower()
            + self._kept_connector() + tables)
    early, late = self._casts("tower"), self._casts("decoder")
    if self.stage.accumulate > 1:  # the sum over microbatches lies beside
      early += sum(grads.values())
    return {
        "head": (early + late + kept + table + head + 2 * self._logits()
                 + self._turned_tables()),
        "decoder": (early + late + kept + head + grads["decoder"]
                    + self._decoder_layer() + self._turned_tables()),
        "connector": (early + self._kept_tower() + head + grads["decoder"]
                      + grads["connector"] + tables + self._connector()),
        "tower": (early + self._kept_tower() + head + sum(grads.values())
                  + self._tower_layer()),
        "update": head + sum(grads.values()),
    }

  def _gradients(self, part: str) -> float:
    return local_bytes([s for key, s in self.state.trained.items()
                        if key.startswith(part + "/")], self.tiled)

  def _casts(self, part: str) -> float:
    """Stacks in the dtype of the computation: cast once, before the loops."""
    return sum(local_bytes(s, self.tiled) * self.width / s.dtype.itemsize
               for key, s in (*self.state.trained.items(),
                              *self.state.frozen.items())
               if key.startswith(f"{part}/") and "/layers" in key
               and s.dtype.itemsize != self.width)

  def _trains(self, part: str) -> bool:
    return any(path.startswith(part + "/") for path in self.trained)

  def _kept_decoder(self) -> float:
    """What the backward pass of the decoder starts again from."""
    c = self.decoder
    heads, groups = c.heads * c.head_width, c.kv_heads * c.head_width
    tensor = self.axes["tensor"]
    return c.layers * self.tokens * self.width * self._kept(
        c.width, heads / tensor, (heads + 2 * groups + 2 * c.mlp_width)
        / tensor, c.heads / tensor * self.config.data.row_length)

  def _kept_tower(self) -> float:
    c = self.tower
    if not self._trains("tower") or not hasattr(c, "mlp_width"):
      return 0.0
    layers = c.layers + 1 + self.config.model.tower.layer
    pixels = 3 * self.images * self.parts.image_size ** 2 * self.width
    return pixels + layers * self.images * c.patches * self.width * self._kept(
        c.width, c.width, 3 * c.width + c.mlp_width, c.heads * c.patches)

  def _kept_connector(self) -> float:
    """What goes in, what an MLP has inside, what comes out."""
    if not (self._trains("tower") or self._trains("connector")):
      return 0.0
    slots = self.rows * self.config.data.images_per_row
    return self.width * slots * (
        self.tower.patches * self.tower.width
        + 2 * self.parts.tokens_per_image * self.decoder.width)

  def _turned_tables(self) -> float:
    """Trained tables and their moments whose rows on a device fill no whole
    registers: a TPU keeps them the other way around, and turns them early."""
    if not self.tiled:
      return 0.0
    tables = [s for key, s in self.state.trained.items()
              if base(key) in ("decoder/embed_vd", "decoder/head_vd")]
    return sum(3.0 * rows * -(-width // _LANES) * _LANES * s.dtype.itemsize
               for s in tables
               for rows, width in [s.sharding.shard_shape(s.shape)]
               if width % _LANES)

  def _kept(self, width: float, attention: float, others: float,
            scores: float) -> float:
    """Numbers a token that a layer keeps.

    Args:
      width: of the residual stream.
      attention: of what attention gives.
      others: of the results of the other products inside the layer.
      scores: of attention's square.
    """
    return {"full": width, "offload": 0.0, "attention": width + attention,
            "dots": 3 * width + attention + others,
            "none": 6 * width + attention + 2 * others + 2 * scores,
            }[self.config.model.remat]

  def _words(self) -> float:
    return self.decoder.vocab_size / self.axes["tensor"]

  def _table(self) -> float:
    """The head, gathered for its products."""
    return self._words() * self.decoder.width * self.width

  def _head_gradient(self) -> float:
    """In f32 and whole: it is summed over devices after the loop."""
    head = "decoder/embed_vd" if self.decoder.tied_head else "decoder/head_vd"
    if head not in self.trained:
      return 0.0
    return self._words() * self.decoder.width * 4

  def _logits(self) -> float:
    """Of the tokens that go through the head at one time."""
    labels = self.rows * self.config.data.labels_per_row / (
        self.axes["context"])
    return min(labels, 512, max(self.decoder.width // 2, 128)) * (
        self._words() * 4)

  def _decoder_layer(self) -> float:
    """One layer, forward again and backward."""
    c, tensor = self.decoder, self.axes["tensor"]
    heads = c.heads * c.head_width
    weights = (c.width * (2 * heads + 2 * c.kv_heads * c.head_width)
               + 3 * c.width * c.mlp_width) / tensor
    wide = 4 * self.tokens * c.mlp_width / tensor * self.width
    length = self.config.data.row_length
    scores = (2 * self.tokens * length * c.heads / tensor * 4)
    form = attention_form(self.parts, length)
    if form != "plain":  # never all at once
      scores = min(scores, 12.0 * SCORES) if form == "chunked" else 0.0
    inside = 0.0
    if self._trains("decoder"):  # its products' inputs wait for gradients
      across = (-(-c.head_width // _LANES) * _LANES if self.tiled
                else c.head_width)
      inside = 2 * self.tokens * across * (c.heads + c.kv_heads) / tensor
    return (weights * self.width + wide + scores
            + (6 * self.tokens * c.width + inside) * self.width)

  def _tower_layer(self) -> float:
    c = self.tower
    if not hasattr(c, "mlp_width"):
      return 0.0
    n = self.images * c.patches
    return (n * (4 * c.mlp_width + 8 * c.width) * self.width
            + 2 * n * c.patches * c.heads * 4)

  def _connector(self) -> float:
    """Features and tokens; a V-sized intermediate where W2 is V x D."""
    slots = self.rows * self.config.data.images_per_row
    count = slots * self.parts.tokens_per_image
    d = self.decoder.width
    plain = (slots * self.tower.patches * self.tower.width
             + 4 * count * d) * self.width
    if not self._has_table():
      return plain
    v = self.decoder.vocab_size / self.axes["tensor"]
    # Both tables' gradients add up over chunks of words, in f32 and whole.
    whole = sum(4 * v * d for table in (
        "connector/w2_vd", "decoder/embed_vd") if table in self.trained)
    return plain + whole

  def _has_table(self) -> bool:
    """Whether the connector has a V x D matrix of its own."""
    return any(p.endswith("connector/w2_vd")
               for p in (*self.trained, *self.state.frozen))

  def _kept_tables(self) -> float:
    """Such a matrix and the embeddings, gathered for both passes at once."""
    if not self._has_table() or not (
        self._trains("tower") or self._trains("connector")):
      return 0.0
    return 2 * self._words() * self.decoder.width * self.width
