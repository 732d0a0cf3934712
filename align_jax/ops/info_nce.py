"""Symmetric InfoNCE over pairs, without an array of [pairs, pairs].

  s_ij = scale * x_i . t_j
  loss = sum_i 1/2 ((lse_j s_ij - s_ii) + (lse_j s_ji - s_ii))

over the kept pairs; a pair that is not kept is no negative either. (SEA,
2408.11813, eq 11, as a sum; CLIP, 2103.00020, figure 3.)

Rows of s exist a chunk at a time. One pass gives both log-sum-exps: a row's
at once, a column's by a running maximum and sum. A gradient needs them all,
so it makes the rows a second time. On a mesh each device has the rows of its
own pairs and gathers the other side once; columns exchange maximum and sum.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from align_jax.parallel.layout import ROWS, Layout

_MASKED = -1e30


def plain_info_nce(x: jax.Array, t: jax.Array, keep: jax.Array,
                   scale: jax.Array) -> jax.Array:
  """The reference: all of s at once. See `info_nce`."""
  s = scale * jnp.einsum("nd,md->nm", x, t,
                         preferred_element_type=jnp.float32)
  pair = s.diagonal()
  s = jnp.where(keep[:, None] & keep, s, _MASKED)
  both = jax.nn.logsumexp(s, axis=1) + jax.nn.logsumexp(s, axis=0)
  return jnp.where(keep, 0.5 * both - pair, 0.0).sum()


def info_nce(
    x: jax.Array,
    t: jax.Array,
    keep: jax.Array,
    scale: jax.Array,
    *,
    layout: Layout = Layout(),
    chunk: int = 256,
    alone: bool = False,
) -> jax.Array:
  """The summed loss of the kept pairs.

  Args:
    x: f[N,D], one side of each pair; normalised where phi is a cosine.
    t: f[N,D], the other side.
    keep: b[N], which pairs take part.
    scale: f32[], one over the temperature.
    layout: the mesh; pairs lie over its row axes where these divide N.
    chunk: rows of s that exist at one time, on each device.
    alone: whether each device's pairs have one another alone as negatives.

  Returns:
    f32[], equal to `plain_info_nce`. Differentiable in x, t and scale; the
    gradient of a constant side is not computed.
  """
  return _loss(x, t, keep, jnp.float32(scale), layout, chunk, alone)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _loss(x, t, keep, scale, layout, chunk, alone):
  return _run(x, t, keep, scale, layout, chunk, alone, "")[0]


def _forward(x, t, keep, scale, layout, chunk, alone):
  wanted = "".join(name for name, arg in (("x", x), ("t", t), ("s", scale))
                   if arg.perturbed)
  loss, *grads = _run(x.value, t.value, keep.value, scale.value, layout,
                      chunk, alone, wanted)
  return loss, grads


def _backward(layout, chunk, alone, grads, g):
  x, t, scale = (None if d is None else (d * g).astype(d.dtype)
                 for d in grads)
  return x, t, None, scale


_loss.defvjp(_forward, _backward, symbolic_zeros=True)


def _run(x, t, keep, scale, layout, chunk, alone, wanted):
  """(loss, gradients of x, t and scale), of the wanted ones."""
  mesh = layout.mesh
  local = functools.partial(_local, chunk=chunk, wanted=wanted)
  if mesh is None or layout.shards(ROWS) == 1 or (
      x.shape[0] % layout.shards(ROWS)):
    return local(x, t, keep, scale)

  def one(*own):
    if not alone:
      return local(*own, axes=ROWS)
    loss, grad_x, grad_t, grad_scale = local(*own)
    total = lambda a: None if a is None else jax.lax.psum(a, ROWS)
    return total(loss), grad_x, grad_t, total(grad_scale)

  rows, of = P(ROWS), lambda name, spec: spec if name in wanted else None
  return jax.shard_map(
      one, mesh=mesh,
      in_specs=(rows, rows, rows, P()),
      out_specs=(P(), of("x", rows), of("t", rows), of("s", P())),
      check_vma=False)(x, t, keep, scale)


def _local(x, t, keep, scale, *, chunk, wanted, axes=()):
  """What one device does with its rows."""
  gather = lambda a: (
      jax.lax.all_gather(a, axes, axis=0, tiled=True) if axes else a)
  total = lambda a: jax.lax.psum(a, axes) if axes else a
  n, width = x.shape
  first = jax.lax.axis_index(axes) * n if axes else 0
  t_all, keep_all = gather(t), gather(keep)
  count = t_all.shape[0]

  chunk = min(chunk, n)
  turns = -(-n // chunk)
  pad = lambda a: jnp.pad(
      a, [(0, turns * chunk - n)] + [(0, 0)] * (a.ndim - 1)).reshape(
          turns, chunk, *a.shape[1:])
  # A place beyond the last pair is a row that is not kept.
  parts = {"x": pad(x), "keep": pad(keep),
           "place": jnp.minimum(
               first + jnp.arange(turns * chunk), count - 1).reshape(
                   turns, chunk)}

  def rows(part):
    s = scale * jnp.einsum("nd,md->nm", part["x"], t_all,
                           preferred_element_type=jnp.float32)
    pair = jnp.take_along_axis(s, part["place"][:, None], axis=1)[:, 0]
    s = jnp.where(part["keep"][:, None] & keep_all, s, _MASKED)
    return s, pair

  def look(carry, part):
    top, weight = carry  # of each column, so far
    s, pair = rows(part)
    new = jnp.maximum(top, s.max(0))
    weight = weight * jnp.exp(top - new) + jnp.exp(s - new).sum(0)
    lse = jax.nn.logsumexp(s, axis=1)
    return (new, weight), (lse, pair)

  (top, weight), (lse, pair) = jax.lax.scan(
      look, (jnp.full(count, _MASKED), jnp.zeros(count)), parts)
  if axes:
    best = jax.lax.pmax(top, axes)
    top, weight = best, total(weight * jnp.exp(top - best))
  column = top + jnp.log(weight)
  mine = jnp.take(column, parts["place"])
  loss = total(jnp.where(parts["keep"], 0.5 * (lse + mine) - pair, 0.0).sum())
  if not wanted:
    return loss, None, None, None

  def slope(carry, part):
    grad_t, grad_scale = carry
    s, _ = rows(part)
    kept = part["keep"]
    # Masked places have s far below any log-sum-exp, so their exp is 0;
    # where a whole row is masked its log-sum-exp is too, hence the mask.
    p = jnp.exp(s - part["lse"][:, None]) + jnp.exp(s - column)
    p = jnp.where(kept[:, None] & keep_all, 0.5 * p, 0.0)
    p = p.at[jnp.arange(chunk), part["place"]].add(-kept.astype(p.dtype))
    if "s" in wanted:
      grad_scale += (p * jnp.where(p == 0, 0.0, s)).sum()
    p = (scale * p).astype(x.dtype)
    if "t" in wanted:
      grad_t += jnp.einsum("nm,nd->md", p, part["x"],
                           preferred_element_type=jnp.float32)
    grad_x = jnp.einsum(
        "nm,md->nd", p, t_all,
        preferred_element_type=jnp.float32) if "x" in wanted else None
    return (grad_t, grad_scale), grad_x

  (grad_t, grad_scale), grad_x = jax.lax.scan(
      slope, (jnp.zeros((count, width)) if "t" in wanted else None,
              jnp.zeros(()) if "s" in wanted else None),
      parts | {"lse": lse})
  if "x" in wanted:
    grad_x = grad_x.reshape(turns * chunk, width)[:n].astype(x.dtype)
  if "t" in wanted:
    if axes:
      grad_t = jax.lax.psum_scatter(grad_t, axes, tiled=True)
    grad_t = grad_t.astype(t.dtype)
  if "s" in wanted:
    grad_scale = total(grad_scale) / scale
  return loss, grad_x, grad_t, grad_scale
