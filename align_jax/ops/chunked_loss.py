"""Next-token cross-entropy that never holds all logits.

Tokens go through the head in chunks; each chunk's gradient is computed in the
forward pass, while its logits exist, and only scaled in the backward pass. So
memory is [chunk, V] and the head's products are done once, not twice.

On a mesh the loop runs inside shard_map: the head is gathered once before it
and its gradient reduce-scattered once after it. Under plain jit the compiler
would gather the head, and reduce its gradient, once a chunk.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from align_jax.parallel.layout import ROWS, Layout
from align_jax.parallel.rules import spec_for


def plain_loss(hidden: jax.Array, head_vd: jax.Array, targets: jax.Array,
               weights: jax.Array, soft_cap: float = 0.0) -> jax.Array:
  """The reference: sum of weighted cross-entropies, all logits at once."""
  logits = jnp.einsum("bmd,vd->bmv", hidden, head_vd.astype(hidden.dtype),
                      preferred_element_type=jnp.float32)
  if soft_cap:
    logits = soft_cap * jnp.tanh(logits / soft_cap)
  target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return (weights * (jax.nn.logsumexp(logits, axis=-1) - target)).sum()


def chunked_loss(
    hidden: jax.Array,
    head_vd: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    layout: Layout = Layout(),
    chunk: int | None = None,
    soft_cap: float = 0.0,
) -> jax.Array:
  """Sum over tokens of weight * (logsumexp(logits) - logit of the target).

  Args:
    hidden: f[B,M,D], the decoder's outputs at labelled positions.
    head_vd: f[V,D], in its own dtype. It is cast to hidden's before it is
      gathered, and its gradient adds up in f32.
    targets: i32[B,M] in [0, V).
    weights: f32[B,M]; 0 for unused places.
    layout: the mesh; rows over its row axes, V over `tensor`.
    chunk: tokens whose logits exist at one time, on each device. None is half
      of D, between 128 and 512: with fewer, logits are little beside the
      gradient of the head, which each further chunk reads and writes.
    soft_cap: c in c tanh(z / c) on the logits (Gemma 2); 0 means none.

  Returns:
    f32[], equal to `plain_loss`. Differentiable in hidden and head_vd; the
    gradient of a frozen head is not computed.
  """
  return _loss(hidden, head_vd, targets, weights, layout, chunk, soft_cap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _loss(hidden, head_vd, targets, weights, layout, chunk, soft_cap):
  return _run(hidden, head_vd, targets, weights, layout, chunk, soft_cap,
              "")[0]


def _forward(hidden, head_vd, targets, weights, layout, chunk, soft_cap):
  wanted = ("h" if hidden.perturbed else "") + (
      "w" if head_vd.perturbed else "")
  loss, grad_hidden, grad_head = _run(
      hidden.value, head_vd.value, targets.value, weights.value, layout,
      chunk, soft_cap, wanted)
  return loss, (grad_hidden, grad_head)


def _backward(layout, chunk, soft_cap, residuals, grad):
  del layout, chunk, soft_cap
  grad_hidden, grad_head = residuals
  scale = lambda g: None if g is None else (g * grad).astype(g.dtype)
  return scale(grad_hidden), scale(grad_head), None, None


_loss.defvjp(_forward, _backward, symbolic_zeros=True)


def _run(hidden, head_vd, targets, weights, layout, chunk, soft_cap, wanted):
  """(loss, gradient of hidden, gradient of the head), of the wanted ones."""
  mesh, master = layout.mesh, head_vd.dtype
  head_vd = head_vd.astype(hidden.dtype)
  if mesh is None or mesh.size == 1:
    return _local(hidden, head_vd, targets, weights, chunk, soft_cap,
                  wanted, master)
  head_spec = spec_for("head_vd", head_vd.shape, dict(mesh.shape))
  rows = ROWS if hidden.shape[0] % layout.shards(ROWS) == 0 else None
  marks = ("context" if hidden.shape[1] % mesh.shape["context"] == 0
           else None)
  token_spec = P(rows, marks)
  # Axes along which devices hold different tokens: sums run over these.
  token_axes = (ROWS if rows else ()) + (("context",) if marks else ())
  parts = tuple(head_spec) + (None,) * (2 - len(head_spec))
  local = functools.partial(
      _local, chunk=chunk, soft_cap=soft_cap, wanted=wanted, master=master,
      token_axes=token_axes,
      vocab_axis=parts[0], width_axis=parts[1])
  out_specs = (P(), token_spec if "h" in wanted else None,
               head_spec if "w" in wanted else None)
  return jax.shard_map(
      local, mesh=mesh,
      in_specs=(token_spec, head_spec, token_spec, token_spec),
      out_specs=out_specs, check_vma=False)(
          hidden, head_vd, targets, weights)


def _local(hidden, head_vd, targets, weights, chunk, soft_cap, wanted, master,
           token_axes=(), vocab_axis=None, width_axis=None):
  """What one device does with its tokens and its part of the head."""
  if width_axis:
    head_vd = jax.lax.all_gather(head_vd, width_axis, axis=1, tiled=True)
  over_vocab = lambda x: jax.lax.psum(x, vocab_axis) if vocab_axis else x
  words, width = head_vd.shape
  first_word = jax.lax.axis_index(vocab_axis) * words if vocab_axis else 0

  count = targets.size
  chunk = min(chunk or min(max(width // 2, 128), 512), count)
  turns = -(-count // chunk)
  pad = lambda x: jnp.pad(
      x.reshape(count, *x.shape[2:]),
      [(0, turns * chunk - count)] + [(0, 0)] * (x.ndim - 2)).reshape(
          turns, chunk, *x.shape[2:])

  def turn(carry, tokens):
    loss, grad_head = carry
    h, target, weight = tokens
    logits = jnp.einsum("nd,vd->nv", h, head_vd,
                        preferred_element_type=jnp.float32)
    if soft_cap:
      logits = soft_cap * jnp.tanh(logits / soft_cap)
    top = logits.max(-1)
    top = jax.lax.pmax(top, vocab_axis) if vocab_axis else top
    exps = jnp.exp(logits - top[:, None])
    total = over_vocab(exps.sum(-1))
    place = target - first_word
    mine = (place >= 0) & (place < words)
    place = jnp.clip(place, 0, words - 1)
    chosen = jnp.take_along_axis(logits, place[:, None], axis=1)[:, 0]
    chosen = over_vocab(jnp.where(mine, chosen, 0.0))
    loss += (weight * (top + jnp.log(total) - chosen)).sum()
    grad_h = None
    if wanted:
      grad = exps * (weight / total)[:, None]
      grad = grad.at[jnp.arange(chunk), place].add(
          jnp.where(mine, -weight, 0.0))
      if soft_cap:
        grad = grad * (1 - jnp.square(logits / soft_cap))
      grad = grad.astype(h.dtype)
    if "h" in wanted:
      grad_h = over_vocab(jnp.einsum(
          "nv,vd->nd", grad, head_vd,
          preferred_element_type=jnp.float32)).astype(h.dtype)
    if "w" in wanted:
      grad_head += jnp.einsum("nv,nd->vd", grad, h,
                              preferred_element_type=jnp.float32)
    return (loss, grad_head), grad_h

  start = (jnp.zeros((), jnp.float32),
           jnp.zeros((words, width), jnp.float32) if "w" in wanted else None)
  (loss, grad_head), grad_hidden = jax.lax.scan(
      turn, start, (pad(hidden), pad(targets), pad(weights)))
  if token_axes:
    loss = jax.lax.psum(loss, token_axes)
  if "h" in wanted:
    grad_hidden = grad_hidden.reshape(turns * chunk, width)[:count].reshape(
        hidden.shape)
  if "w" in wanted:
    others = tuple(a for a in token_axes if a != width_axis)
    if width_axis:
      grad_head = _scatter_width(
          grad_head, width_axis, width_axis in token_axes)
    if others:
      grad_head = jax.lax.psum(grad_head, others)
    grad_head = grad_head.astype(master)
  return loss, grad_hidden, grad_head


def _scatter_width(grad_vd, axis, differs):
  """This device's columns of the head's gradient.

  Summed over `axis` where its devices saw different tokens.
  """
  if differs:
    return jax.lax.psum_scatter(
        grad_vd, axis, scatter_dimension=1, tiled=True)
  size = grad_vd.shape[1] // jax.lax.axis_size(axis)
  return jax.lax.dynamic_slice_in_dim(
      grad_vd, jax.lax.axis_index(axis) * size, size, axis=1)
