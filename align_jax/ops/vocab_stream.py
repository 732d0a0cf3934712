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

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from align_jax.ops.vocab_share import LOW, Axes, How, Share
from align_jax.parallel.layout import ROWS, Layout
from align_jax.parallel.rules import spec_for

_NAMES = ("h", "w2", "scale", "bias", "embed")
_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


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
  return _mix(How(eps, layout, chunk, norm_kept), h, w2_vd, scale_v, bias_v,
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
    found = local(*arrays, axes=Axes())
  else:
    sizes = dict(mesh.shape)
    specs = [(*spec_for(name, x.shape, sizes), None, None)[:2]
             for name, x in (("w2_vd", w2), ("embed_vd", embed))]
    rows = ROWS if h.shape[0] % layout.shards(ROWS) == 0 else None
    marks = "context" if h.shape[1] % sizes["context"] == 0 else None
    there = lambda axis: axis if axis and sizes[axis] > 1 else None
    axes = Axes(
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
  words = Share(w2, scale, bias, embed, keep, how, axes)
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

  zeros = lambda *shape: jnp.zeros((b * n, *shape), jnp.float32)
  (top, total, mixed), _ = jax.lax.scan(
      turn, (zeros() + LOW, zeros(), zeros(words.values.shape[1])),
      words.chunks.places)
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
  words = Share(w2, scale, bias, embed, keep, how, axes)
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
    cut = functools.partial(words.chunks.cut, i=place)
    add = lambda name, x: words.chunks.put(
        own[name], cut(own[name]) + x, place)
    if "scale" in own:
      u = _dot("nv,nd->vd", low, g)
      new["scale"] = add("scale", (u * centred).sum(-1))
    if "w2" in own:
      new["w2"] = add("w2", u * cut(words.scale)[:, None])
    if "bias" in own:
      new["bias"] = add("bias", ds.sum(0))
    if "embed" in own:
      new["embed"] = add("embed", _dot("nv,nd->vd", p.astype(h.dtype), grad))
    return new, None

  own, _ = jax.lax.scan(turn, own, words.chunks.places)
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
