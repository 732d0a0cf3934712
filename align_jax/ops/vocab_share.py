"""One device's share of the words of the ALIGN mix (ops/vocab_stream.py).

  table part on the device --own rows--> T words --kept--> k words, in chunks

Where the tables' axis V lies cut over `tensor`, a device's rows are its
share. Where V does not divide, every device holds all rows, takes its own out
of them, and puts their gradients back.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from align_jax.parallel.layout import Layout

# Below any logit, and finite: a share without words has no NaN.
LOW = -1e30
_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@dataclasses.dataclass(frozen=True)
class How:
  """What is fixed when the op is traced; fields as `stream_mix` has them."""
  eps: float
  layout: Layout
  chunk: int
  norm_kept: bool


@dataclasses.dataclass(frozen=True)
class Axes:
  """The mesh axes, of more than one device, that share out the work.

  Attributes:
    vocab: over which the words are divided.
    cut: whether the tables lie cut over it already.
    width: along which W2's and E's rows are cut.
    tokens: along which devices hold different tokens.
  """
  vocab: str | None = None
  cut: bool = False
  width: tuple[str | None, str | None] = (None, None)
  tokens: tuple[str, ...] = ()

  @property
  def all(self) -> tuple[str, ...]:
    return self.tokens + ((self.vocab,) if self.vocab else ())


class Chunks:
  """Rows in chunks of one size, of which the last may overlap the one before.

  Attributes:
    size: of a chunk.
    places: i32[chunks], their numbers.
  """

  def __init__(self, rows: int, most: int):
    self.rows = rows
    self.size = -(-rows // -(-rows // min(most, rows)))
    self.places = jnp.arange(-(-rows // self.size))

  def start(self, i: jax.Array) -> jax.Array:
    return jnp.minimum(i * self.size, self.rows - self.size)

  def fresh(self, i: jax.Array) -> jax.Array:
    """Which rows of a chunk no chunk before had."""
    return self.start(i) + jnp.arange(self.size) >= i * self.size

  def cut(self, x: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, self.start(i), self.size)

  def put(self, x: jax.Array, new: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, new, self.start(i), 0)


class Share:
  """A device's words, whole in width.

  Attributes:
    all_keys: f[T,K] rows of W2; None where only the kept are needed.
    keys: f[T or k,K] those that are mixed.
    values: f[T or k,D] of E.
    scale: f32[T or k].
    offset: f32[T or k], the bias; LOW in a place that is another device's.
    chunks: of the words that are mixed.
  """

  def __init__(self, w2: jax.Array, scale: jax.Array, bias: jax.Array,
               embed: jax.Array, keep: jax.Array | None, how: How,
               axes: Axes):
    """Arrays as the device holds them: tables cut, vectors and keep whole."""
    self.how, self.axes = how, axes
    self.vocab, self.part = scale.shape[0], w2.shape[0]
    devices = jax.lax.axis_size(axes.vocab) if axes.vocab else 1
    self.share = -(-self.vocab // devices)
    index = jax.lax.axis_index(axes.vocab) if axes.vocab else 0
    lowest = index * self.share
    self.sliced = axes.vocab is not None and not axes.cut
    # The last shares of a table that does not divide overlap; what stands
    # before a device's own first word is another's.
    self.first = (jnp.minimum(lowest, self.vocab - self.share)
                  if axes.vocab else 0)
    mine = (self.first + jnp.arange(self.share) >= lowest
            if self.sliced else jnp.ones(self.share, bool))
    self.mine = mine
    self.keep = keep
    # Kept words' rows are taken before a table is gathered.
    few = keep is not None
    if few:
      place = keep - self.first
      inside = (place >= 0) & (place < self.share)
      self.kept_at = jnp.where(inside, place, 0)
      inside &= mine[self.kept_at]
      self.kept_or_drop = jnp.where(inside, place, self.share)
      mine = inside
    pick = lambda x: x[self.kept_at] if few else x
    w2, embed = self._rows(w2, axes.cut), self._rows(embed, axes.cut)
    self.all_keys = None
    if few and how.norm_kept:
      self.keys = self._whole(pick(w2), 0)
    else:
      self.all_keys = self._whole(w2, 0)
      self.keys = pick(self.all_keys)
    self.values = self._whole(pick(embed), 1)
    self.scale = pick(self._rows(scale, False))
    self.offset = jnp.where(mine, pick(self._rows(bias, False)), LOW)
    self.valid = mine
    self.chunks = Chunks(self.keys.shape[0], how.chunk)

  def _rows(self, x, cut):
    """The share's rows of what a device holds of an array."""
    if cut or not self.axes.vocab:
      return x
    return jax.lax.dynamic_slice_in_dim(x, self.first, self.share)

  def _whole(self, x, table):
    axis = self.axes.width[table]
    return jax.lax.all_gather(x, axis, axis=1, tiled=True) if axis else x

  def chunk(self, place: jax.Array, mean: jax.Array
            ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(scaled keys, bias, values, centred rows of W2) of a chunk."""
    cut = functools.partial(self.chunks.cut, i=place)
    centred = cut(self.keys) - mean
    keys = (centred * cut(self.scale)[:, None]).astype(self.keys.dtype)
    offset = jnp.where(self.chunks.fresh(place), cut(self.offset), LOW)
    return keys, offset, cut(self.values), centred

  def statistics(self, h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean f32[K] of W2's rows, G h f32[N,K]) over all shares."""
    if self.all_keys is None:
      rows, valid, count = self.keys, self.valid, self.keep.shape[0]
    else:
      rows, valid, count = self.all_keys, self.mine, self.vocab
    axes, tokens = self.axes, h.shape[0]
    width = rows.shape[1]
    split = _devices(axes.tokens)
    if 2 * tokens * split < width and not (axes.vocab or axes.tokens):
      return _pass(rows, valid, count, h, self.how.chunk)
    # Every device of the mesh takes a part of the product.
    part = -(-rows.shape[0] // split)
    at = _index(axes.tokens) * part
    start = jnp.minimum(at, rows.shape[0] - part)
    take = lambda x: jax.lax.dynamic_slice_in_dim(x, start, part)
    if split > 1:
      valid = take(valid) & (start + jnp.arange(part) >= at)
      rows = take(rows)
    held = valid.sum().astype(jnp.float32)
    mean = _dot("v,vd->d", valid.astype(rows.dtype), rows) / jnp.maximum(
        held, 1)
    gram = _gram(rows, valid, mean, self.how.chunk)
    if axes.all:
      # Parts differ in their means; both travel in one matrix.
      both = jax.lax.psum(jnp.concatenate([
          gram + held * jnp.outer(mean, mean), held * mean[None]]), axes.all)
      mean = both[-1] / count
      gram = both[:-1] - count * jnp.outer(mean, mean)
    return mean, _dot("nd,de->ne", h, gram / count)

  def w2_gradient(self, scaled: jax.Array, g: jax.Array, lean: jax.Array,
                  mean: jax.Array) -> jax.Array:
    """From sum_n ds g scale to the gradient of W2, as it lies.

    Args:
      scaled: f32[T or k,K], of the words mixed, from this device's tokens.
      g: f[N,K].
      lean: f32[N].
      mean: f32[K].
    """
    axes = self.axes
    total = scaled.sum(0)
    # Words per normalisation, and its rows.
    normed, count = (self.keys, self.keep.shape[0]) if (
        self.all_keys is None) else (self.all_keys, self.vocab)
    valid = self.valid if self.all_keys is None else self.mine
    if self.all_keys is not None:
      scaled = self.spread_kept(scaled)
    moment = _dot("nd,ne->de", g, lean[:, None] * g)
    if axes.all:
      total = jax.lax.psum(total, axes.all)
    if axes.tokens:
      moment = jax.lax.psum(moment, axes.tokens)
    scaled = self._reduce(scaled, 0)
    moment, total = (self._own_columns(x / count, 0) for x in (moment, total))
    chunks = Chunks(normed.shape[0], self.how.chunk)
    low = moment.astype(normed.dtype)

    def turn(grad, i):
      cut = functools.partial(chunks.cut, i=i)
      centred = (cut(normed) - mean).astype(normed.dtype)
      fresh = cut(valid) & chunks.fresh(i)
      less = _dot("vd,de->ve", centred, low) + total
      return chunks.put(
          grad, cut(grad) - jnp.where(fresh[:, None], less, 0), i), None

    grad, _ = jax.lax.scan(turn, scaled, chunks.places)
    if self.all_keys is None:
      grad = self.spread_kept(grad)
    return self._put_rows(grad)

  def spread_kept(self, x: jax.Array) -> jax.Array:
    """[k, ...] -> [T, ...], zero for words that are not kept."""
    if self.keep is None:
      return x
    empty = jnp.zeros((self.share, *x.shape[1:]), x.dtype)
    return empty.at[self.kept_or_drop].add(x, mode="drop")

  def put_table(self, grad: jax.Array, table: int) -> jax.Array:
    """[T,D] -> as W2 (0) or E (1) lies, summed over all tokens."""
    return self._put_rows(self._reduce(grad, table))

  def put_vector(self, grad: jax.Array) -> jax.Array:
    """[T] -> [V] on every device, summed over all tokens and shares."""
    axes = self.axes
    if axes.vocab:
      grad = jax.lax.dynamic_update_slice_in_dim(
          jnp.zeros(self.vocab, grad.dtype), grad, self.first, 0)
    return jax.lax.psum(grad, axes.all) if axes.all else grad

  def _own_columns(self, x, table):
    axis = self.axes.width[table]
    if not axis:
      return x
    size = x.shape[-1] // jax.lax.axis_size(axis)
    return jax.lax.dynamic_slice_in_dim(
        x, jax.lax.axis_index(axis) * size, size, axis=x.ndim - 1)

  def _reduce(self, grad, table):
    """Summed over tokens; own columns alone where the table is cut."""
    axis, tokens = self.axes.width[table], self.axes.tokens
    if axis in tokens:
      grad = jax.lax.psum_scatter(grad, axis, scatter_dimension=1, tiled=True)
    else:
      grad = self._own_columns(grad, table)
    rest = tuple(a for a in tokens if a != axis)
    return jax.lax.psum(grad, rest) if rest else grad

  def _put_rows(self, grad):
    if not self.sliced:
      return grad
    whole = jnp.zeros((self.part, grad.shape[1]), grad.dtype)
    return jax.lax.psum(jax.lax.dynamic_update_slice_in_dim(
        whole, grad, self.first, 0), self.axes.vocab)


def _gram(rows, valid, mean, chunk):
  """Sum over valid rows of (w - mean)(w - mean)^T, f32[K,K]."""
  chunks, centred = _centred(rows, valid, mean, chunk)
  return jax.lax.scan(lambda gram, i: (
      gram + _dot("vd,ve->de", centred(i), centred(i)), None),
      jnp.zeros((rows.shape[1],) * 2, jnp.float32), chunks.places)[0]


def _pass(rows, valid, count, h, chunk):
  """(mean, G h) by a pass over the words: cheaper than G for few tokens."""
  mean = _dot("v,vd->d", valid.astype(rows.dtype), rows) / count
  chunks, centred = _centred(rows, valid, mean, chunk)

  def turn(spread, i):
    z = _dot("nd,vd->nv", h, centred(i)).astype(h.dtype)
    return spread + _dot("nv,vd->nd", z, centred(i)), None

  spread, _ = jax.lax.scan(turn, jnp.zeros(h.shape, jnp.float32),
                           chunks.places)
  return mean, spread / count


def _centred(rows, valid, mean, chunk):
  """Chunks of rows less their mean, zero where they are not valid."""
  chunks = Chunks(rows.shape[0], chunk)

  def centred(i):
    fresh = chunks.cut(valid, i) & chunks.fresh(i)
    return jnp.where(fresh[:, None], chunks.cut(rows, i) - mean, 0).astype(
        rows.dtype)

  return chunks, centred


def _devices(axes: tuple[str, ...]) -> int:
  return math.prod(jax.lax.axis_size(a) for a in axes)


def _index(axes: tuple[str, ...]) -> Any:
  """This device's number along several axes together."""
  index = 0
  for axis in axes:
    index = index * jax.lax.axis_size(axis) + jax.lax.axis_index(axis)
  return index
