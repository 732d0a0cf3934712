"""Embedding look-up in a table that is cut over the mesh.

The table lies [V over tensor, D over fsdp], the tokens lie over the rows. A
plain gather makes the compiler replicate one of them. Here each device looks
up its own columns for the rows of its whole fsdp group, and one all-to-all
turns columns into rows: what travels is of the size of the activations.

  tokens [b, L] --all_gather fsdp--> [F b, L]
  own part of the table            -> [F b, L, D/F], zero for others' words
  --all_to_all fsdp--> [b, L, D] --psum tensor--> [b, L, D]
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from align_jax.parallel.layout import ROWS, Layout
from align_jax.parallel.rules import spec_for


def embed_lookup(table_vd: jax.Array, tokens: jax.Array, *,
                 dtype: Any, layout: Layout = Layout()) -> jax.Array:
  """table_vd[tokens], in `dtype`.

  Args:
    table_vd: f[V,D].
    tokens: i32[B,L] in [0, V).
    dtype: of the result. The table is cast before anything travels.
    layout: the mesh.

  Returns:
    f[B,L,D]. The table's gradient adds up in f32.
  """
  mesh = layout.mesh
  if (mesh is None or mesh.size == 1
      or tokens.shape[0] % layout.shards(ROWS)):
    return table_vd.astype(dtype)[tokens]
  return _lookup(table_vd, tokens, jnp.dtype(dtype).name, layout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _lookup(table_vd, tokens, dtype, layout):
  return _on_mesh(_take, table_vd, layout, tokens)(
      table_vd.astype(dtype), tokens)


def _forward(table_vd, tokens, dtype, layout):
  empty = jnp.zeros((0, *table_vd.shape), table_vd.dtype)  # its shape, dtype
  return _lookup(table_vd, tokens, dtype, layout), (empty, tokens)


def _backward(dtype, layout, residuals, grad):
  del dtype
  empty, tokens = residuals
  table_vd = jax.ShapeDtypeStruct(empty.shape[1:], empty.dtype)
  summed = _on_mesh(_add, table_vd, layout, tokens)(grad, tokens)
  return summed.astype(empty.dtype), None


_lookup.defvjp(_forward, _backward)


def _on_mesh(body, table_vd, layout, tokens):
  """`body` inside shard_map; it gets and gives local parts."""
  mesh = layout.mesh
  table = spec_for("embed_vd", table_vd.shape, dict(mesh.shape))
  vocab, width = tuple(table) + (None,) * (2 - len(table))
  marks = ("context" if tokens.shape[1] % mesh.shape["context"] == 0
           else None)
  rows = P(ROWS, marks)
  shape = [size // (mesh.shape[axis] if axis else 1)
           for size, axis in zip(table_vd.shape, (vocab, width))]
  body = functools.partial(body, vocab=vocab, width=width, shape=shape,
                           marks=marks)
  into = (table, rows) if body.func is _take else (rows, rows)
  out = rows if body.func is _take else table
  return jax.shard_map(body, mesh=mesh, in_specs=into, out_specs=out,
                       check_vma=False)


def _own_words(tokens, vocab, width, words):
  """The group's tokens as places in this device's words; `words` if none."""
  if width:
    tokens = jax.lax.all_gather(tokens, width, axis=0, tiled=True)
  first = jax.lax.axis_index(vocab) * words if vocab else 0
  place = tokens - first
  return jnp.where((place >= 0) & (place < words), place, words)


def _take(table_vd, tokens, vocab, width, shape, marks):
  del marks
  place = _own_words(tokens, vocab, width, shape[0])
  found = table_vd.at[place].get(mode="fill", fill_value=0)
  if width:
    found = jax.lax.all_to_all(found, width, split_axis=0, concat_axis=2,
                               tiled=True)
  return jax.lax.psum(found, vocab) if vocab else found


def _add(grad, tokens, vocab, width, shape, marks):
  place = _own_words(tokens, vocab, width, shape[0])
  if width:
    grad = jax.lax.all_to_all(grad, width, split_axis=2, concat_axis=0,
                              tiled=True)
  summed = jnp.zeros(shape, jnp.float32).at[place.reshape(-1)].add(
      grad.reshape(-1, grad.shape[-1]).astype(jnp.float32), mode="drop")
  # With columns over fsdp the exchange has summed over its rows already.
  others = tuple(a for a in ROWS if a != width) + ((marks,) if marks else ())
  return jax.lax.psum(summed, others)
