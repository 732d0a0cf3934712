"""The ALIGN mix in chunks of words: no array of tokens x vocabulary.

With h one visual token's projected patch, w_v and e_v the rows of W2 and E,
and m, G the mean and the covariance of the rows of W2:

  LayerNorm(W2 h)_v = scale_v k_v . g + bias_v,   k_v = w_v - m,
                                                  g = h / sqrt(h G h + eps)

for the mean of the logits is m . h and their variance h G h. So one product
G costs 2 V D^2 and spares a pass over all logits (4 N V D with its gradient);
with few tokens, where that is cheaper, G h is found by a pass instead. What
remains is attention with one head: an online softmax over chunks of words,
whose backward pass computes each chunk again.

  forward   top, total, sum of p e over the chunks
  backward  p from the saved log-sum; ds = p (dO . e - dO . O)
            dg = sum ds scale k      u_v = sum_n ds g      de = p^T dO
            dh = (dg - (g . dg) G g) / sqrt(...)
            dw = scale u - mean over words - k M,   M = sum_n (g . dg) g g / V

On a mesh all of it runs inside shard_map. Each device has its share of the
words (the tables' axis V lies over `tensor`; where it does not divide, each
device cuts its share out of the whole table) and gathers the tables' other
axis once, before any loop. Forward, three all-reduces: the Gram matrix with
its mean, the top, and the sums. Nothing as long as V is gathered.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from align_jax.parallel.layout import ROWS, Layout
from align_jax.parallel.rules import spec_for

# Below any logit, and finite: a share without words has no NaN.
_LOW = -1e30
_NAMES = ("h", "w2", "scale", "bias", "embed")
_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@dataclasses.dataclass(frozen=True)
class _How:
  """What is fixed when the op is traced."""
  eps: float
  layout: Layout
  chunk: int
  norm_kept: bool


@dataclasses.dataclass(frozen=True)
class _Axes:
  """The mesh axes that a device shares its work along.

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


def stream_mix(
    h: jax.Array,
    w2_vd: jax.Array,
    scale_v: jax.Array,
    bias_v: jax.Array,
    embed_vd: jax.Array,
    keep: jax.Array | None = None,
    *,
    eps: float,
    layout: Layout,
    chunk: int,
    norm_kept: bool = False,
) -> jax.Array:
  """The same as the plain form; arguments as `vocab_mix` has them.

  Args:
    h: f[B,N,K].
    w2_vd: f[V,K], cast to h's dtype before it is gathered.
    scale_v: f[V].
    bias_v: f[V].
    embed_vd: f[V,D], cast likewise.
    keep: i32[k], see `vocab_mix`.
    eps: of the LayerNorm.
    layout: the mesh.
    chunk: the most words whose logits exist at one time, on each device.
    norm_kept: see `vocab_mix`.

  Returns:
    f[B,N,D]. Gradients of the tables add up in f32; those of frozen arrays
    are not computed.
  """
  return _mix(_How(eps, layout, chunk, norm_kept), h, w2_vd, scale_v, bias_v,
              embed_vd, keep)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(how, h, w2_vd, scale_v, bias_v, embed_vd, keep):
  return _run(how, (h, w2_vd, scale_v, bias_v, embed_vd, keep))[0]


def _mix_forward(how, *primals):
  values = tuple(None if p is None else p.value for p in primals)
  out, saved = _run(how, values)
  # Which gradients are wanted stands in the tree's structure, not in arrays.
  wanted = {n: () for n, p in zip(_NAMES, primals) if p.perturbed}
  return out, (values, out, saved, wanted)


def _mix_backward(how, residuals, grad):
  values, out, saved, wanted = residuals
  grads = _run(how, values, (grad, out, saved), tuple(wanted))
  return tuple(grads.get(name) for name in _NAMES) + (None,)


_mix.defvjp(_mix_forward, _mix_backward, symbolic_zeros=True)


def _run(how, values, back=None, wanted=()):
  """Forward: (out, saved). With `back` the gradients wanted, by name."""
  h, w2, scale, bias, embed, keep = values
  mesh, layout = how.layout.mesh, how.layout
  dtypes = dict(zip(_NAMES, (x.dtype for x in values[:5])))
  arrays = (h, w2.astype(h.dtype), scale.astype(jnp.float32),
            bias.astype(jnp.float32), embed.astype(h.dtype), keep)
  local = functools.partial(
      _forward if back is None else _backward, how=how)
  if back is not None:
    local = functools.partial(local, wanted=wanted)
    arrays += back
  if mesh is None or mesh.size == 1:
    found = local(*arrays, axes=_Axes())
  else:
    sizes = dict(mesh.shape)
    specs = [(*spec_for(name, x.shape, sizes), None, None)[:2]
             for name, x in (("w2_vd", w2), ("embed_vd", embed))]
    rows = ROWS if h.shape[0] % layout.shards(ROWS) == 0 else None
    marks = "context" if h.shape[1] % sizes["context"] == 0 else None
    there = lambda axis: axis if axis and sizes[axis] > 1 else None
    axes = _Axes(
        vocab=there("tensor"), cut=specs[0][0] == specs[1][0] == "tensor",
        width=(there(specs[0][1]), there(specs[1][1])),
        tokens=tuple(filter(there, (*(rows or ()), marks))))
    by_token, tables = P(rows, marks), [P(*s) for s in specs]
    into = (by_token, tables[0], P(), P(), tables[1], P())
    saved = {"log_sum": by_token, "rate": by_token, "spread": by_token,
             "mean": P()}
    if back is None:
      out_specs = (by_token, saved)
    else:
      into += (by_token, by_token, saved)
      where = dict(zip(_NAMES, into))
      out_specs = {name: where[name] for name in wanted}
    found = jax.shard_map(
        functools.partial(local, axes=axes), mesh=mesh, in_specs=into,
        out_specs=out_specs, check_vma=False)(*arrays)
  if back is None:
    return found
  return {name: g.astype(dtypes[name]) for name, g in found.items()}


def _forward(h, w2, scale, bias, embed, keep, *, how, axes):
  """What one device does: its tokens, its share of the words."""
  b, n, _ = h.shape
  h = h.reshape(b * n, -1)
  words = _Words(w2, scale, bias, embed, keep, how, axes)
  mean, spread = words.statistics(h)
  rate = jax.lax.rsqrt(_dot("nd,nd->n", h, spread) + how.eps)
  g = (h * rate[:, None]).astype(h.dtype)

  def turn(carry, place):
    top, total, mixed = carry
    keys, offset, values, _ = words.chunk(place, mean)
    s = _dot("nd,vd->nv", g, keys) + offset
    peak = jnp.maximum(top, s.max(-1))
    p, old = jnp.exp(s - peak[:, None]), jnp.exp(top - peak)
    return (peak, total * old + p.sum(-1), mixed * old[:, None] + _dot(
        "nv,vd->nd", p.astype(values.dtype), values)), None

  count = b * n
  (top, total, mixed), _ = jax.lax.scan(turn, (
      jnp.full(count, _LOW, jnp.float32), jnp.zeros(count, jnp.float32),
      jnp.zeros((count, words.values.shape[1]), jnp.float32)), words.places)
  if axes.vocab:
    peak = jax.lax.pmax(top, axes.vocab)
    share = jnp.exp(top - peak)
    total, mixed = jax.lax.psum(
        (total * share, mixed * share[:, None]), axes.vocab)
    top = peak
  out = (mixed / total[:, None]).astype(h.dtype)
  back = lambda x: x.reshape(b, n, *x.shape[1:])
  return back(out), {
      "log_sum": back(top + jnp.log(total)), "rate": back(rate),
      "spread": back((spread * rate[:, None]).astype(h.dtype)), "mean": mean}


def _backward(h, w2, scale, bias, embed, keep, grad, out, saved, *, how, axes,
              wanted):
  """Gradients of the wanted arrays, each as its array lies."""
  b, n, _ = h.shape
  flat = lambda x: x.reshape(b * n, *x.shape[2:])
  h, grad, out = flat(h), flat(grad).astype(h.dtype), flat(out)
  log_sum, rate, spread = (
      flat(saved[k]) for k in ("log_sum", "rate", "spread"))
  words = _Words(w2, scale, bias, embed, keep, how, axes)
  g = (h * rate[:, None]).astype(h.dtype)
  along = _dot("nd,nd->n", grad, out)
  count, width = words.keys.shape
  own = {"push": jnp.zeros((b * n, width), jnp.float32)}
  if "w2" in wanted or "scale" in wanted:
    own["scale"] = jnp.zeros(count, jnp.float32)
  if "w2" in wanted:
    own["w2"] = jnp.zeros((count, width), jnp.float32)
  if "bias" in wanted:
    own["bias"] = jnp.zeros(count, jnp.float32)
  if "embed" in wanted:
    own["embed"] = jnp.zeros(words.values.shape, jnp.float32)

  def turn(own, place):
    keys, offset, values, centred = words.chunk(place, saved["mean"])
    s = _dot("nd,vd->nv", g, keys) + offset
    p = jnp.exp(s - log_sum[:, None])
    ds = p * (_dot("nd,vd->nv", grad, values) - along[:, None])
    low = ds.astype(h.dtype)
    new = {"push": own["push"] + _dot("nv,vd->nd", low, keys)}
    add = lambda name, x: jax.lax.dynamic_update_slice_in_dim(
        own[name], words.cut(own[name], place) + x, words.start(place), 0)
    if "scale" in own:
      u = _dot("nv,nd->vd", low, g)
      new["scale"] = add("scale", (u * centred).sum(-1))
    if "w2" in own:
      new["w2"] = add("w2", u * words.cut(words.scale, place)[:, None])
    if "bias" in own:
      new["bias"] = add("bias", ds.sum(0))
    if "embed" in own:
      new["embed"] = add("embed", _dot("nv,nd->vd", p.astype(h.dtype), grad))
    return new, None

  own, _ = jax.lax.scan(turn, own, words.places)
  push = own.pop("push")
  push = jax.lax.psum(push, axes.vocab) if axes.vocab else push
  lean = _dot("nd,nd->n", g, push)
  grads = {}
  if "h" in wanted:
    dh = rate[:, None] * (push - lean[:, None] * spread)
    grads["h"] = dh.reshape(b, n, -1)
  if "w2" in wanted:
    grads["w2"] = words.w2_gradient(own["w2"], g, lean, saved["mean"])
  if "embed" in wanted:
    grads["embed"] = words.put_table(words.spread_kept(own["embed"]), 1)
  for name in ("scale", "bias"):
    if name in wanted:
      grads[name] = words.put_vector(words.spread_kept(own[name]))
  return grads


class _Words:
  """One device's share of the words, and how it lies in the arrays given.

    table part --share--> T words --keep--> k words, in chunks

  Attributes:
    all_keys: f[T,K] rows of W2 of the share, whole in width; None where they
      are not needed.
    keys: f[T or k,K] those that are mixed.
    values: f[T or k,D].
    scale: f32[T or k].
    offset: f32[T or k], the bias; far below any logit for a place that is
      another device's.
    places: i32[turns], the numbers of the chunks.
  """

  def __init__(self, w2, scale, bias, embed, keep, how, axes):
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
    self.offset = jnp.where(mine, pick(self._rows(bias, False)), _LOW)
    self.valid = mine
    count = self.keys.shape[0]
    turns = -(-count // min(how.chunk, count))
    self.size = -(-count // turns)
    self.places = jnp.arange(turns)

  def _rows(self, x, cut):
    """The share's rows of what a device holds of an array."""
    if cut or not self.axes.vocab:
      return x
    return jax.lax.dynamic_slice_in_dim(x, self.first, self.share)

  def _whole(self, x, table):
    axis = self.axes.width[table]
    return jax.lax.all_gather(x, axis, axis=1, tiled=True) if axis else x

  def start(self, place):
    """Where a chunk begins: the last one may overlap the one before."""
    return jnp.minimum(place * self.size, self.keys.shape[0] - self.size)

  def cut(self, x, place):
    return jax.lax.dynamic_slice_in_dim(x, self.start(place), self.size)

  def chunk(self, place, mean):
    """(scaled keys, bias, values, centred rows of W2) of a chunk."""
    fresh = self.start(place) + jnp.arange(self.size) >= place * self.size
    centred = self.cut(self.keys, place) - mean
    keys = (centred * self.cut(self.scale, place)[:, None]).astype(
        self.keys.dtype)
    return (keys, jnp.where(fresh, self.cut(self.offset, place), _LOW),
            self.cut(self.values, place), centred)

  def statistics(self, h):
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
    over = axes.tokens + ((axes.vocab,) if axes.vocab else ())
    held = valid.sum().astype(jnp.float32)
    mean = _dot("v,vd->d", valid.astype(rows.dtype), rows) / jnp.maximum(
        held, 1)
    gram = _gram(rows, valid, mean, self.how.chunk)
    if over:
      # Parts differ in their means; both travel in one matrix.
      both = jax.lax.psum(jnp.concatenate([
          gram + held * jnp.outer(mean, mean), held * mean[None]]), over)
      mean = both[-1] / count
      gram = both[:-1] - count * jnp.outer(mean, mean)
    return mean, _dot("nd,de->ne", h, gram / count)

  def w2_gradient(self, scaled, g, lean, mean):
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
    over = axes.tokens + ((axes.vocab,) if axes.vocab else ())
    if over:
      total = jax.lax.psum(total, over)
    if axes.tokens:
      moment = jax.lax.psum(moment, axes.tokens)
    scaled = self._reduce(scaled, 0)
    moment, total = (self._own_columns(x / count, 0) for x in (moment, total))
    size = -(-normed.shape[0] // -(-normed.shape[0] // self.how.chunk))
    last = normed.shape[0] - size

    def turn(grad, i):
      at = jnp.minimum(i * size, last)
      cut = lambda x: jax.lax.dynamic_slice_in_dim(x, at, size)
      fresh = cut(valid) & (at + jnp.arange(size) >= i * size)
      centred = (cut(normed) - mean).astype(normed.dtype)
      less = _dot("vd,de->ve", centred, moment.astype(normed.dtype)) + total
      return jax.lax.dynamic_update_slice_in_dim(
          grad, cut(grad) - jnp.where(fresh[:, None], less, 0), at, 0), None

    grad, _ = jax.lax.scan(turn, scaled,
                           jnp.arange(-(-normed.shape[0] // size)))
    if self.all_keys is None:
      grad = self.spread_kept(grad)
    return self._put_rows(grad)

  def spread_kept(self, x):
    """[k, ...] -> [T, ...], zero for words that are not kept."""
    if self.keep is None:
      return x
    empty = jnp.zeros((self.share, *x.shape[1:]), x.dtype)
    return empty.at[self.kept_or_drop].add(x, mode="drop")

  def put_table(self, grad, table):
    """[T,D] -> as the table lies, summed over all tokens."""
    return self._put_rows(self._reduce(grad, table))

  def put_vector(self, grad):
    """[T] -> [V] on every device, summed over all tokens and shares."""
    axes = self.axes
    if axes.vocab:
      grad = jax.lax.dynamic_update_slice_in_dim(
          jnp.zeros(self.vocab, grad.dtype), grad, self.first, 0)
    over = axes.tokens + ((axes.vocab,) if axes.vocab else ())
    return jax.lax.psum(grad, over) if over else grad

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
  size, places, cut = _turns(rows, valid, mean, chunk)
  del size
  return jax.lax.scan(lambda gram, i: (
      gram + _dot("vd,ve->de", cut(i), cut(i)), None),
      jnp.zeros((rows.shape[1],) * 2, jnp.float32), places)[0]


def _pass(rows, valid, count, h, chunk):
  """(mean, G h) by a pass over the words: cheaper than G for few tokens."""
  mean = _dot("v,vd->d", valid.astype(rows.dtype), rows) / count
  _, places, cut = _turns(rows, valid, mean, chunk)

  def turn(spread, i):
    z = _dot("nd,vd->nv", h, cut(i)).astype(h.dtype)
    return spread + _dot("nv,vd->nd", z, cut(i)), None

  spread, _ = jax.lax.scan(turn, jnp.zeros(h.shape, jnp.float32), places)
  return mean, spread / count


def _turns(rows, valid, mean, chunk):
  """Chunks of centred rows, zero where they are not valid."""
  count = rows.shape[0]
  size = -(-count // -(-count // min(chunk, count)))

  def cut(i):
    at = jnp.minimum(i * size, count - size)
    part = lambda x: jax.lax.dynamic_slice_in_dim(x, at, size)
    fresh = part(valid) & (at + jnp.arange(size) >= i * size)
    return jnp.where(fresh[:, None], part(rows) - mean, 0).astype(rows.dtype)

  return size, jnp.arange(-(-count // size)), cut


def _devices(axes: tuple[str, ...]) -> int:
  return math.prod(jax.lax.axis_size(a) for a in axes)


def _index(axes: tuple[str, ...]) -> Any:
  """This device's number along several axes together."""
  index = 0
  for axis in axes:
    index = index * jax.lax.axis_size(axis) + jax.lax.axis_index(axis)
  return index
