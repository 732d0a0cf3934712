"""How a row's tokens are dealt out along `context`, for equal work.

Causal attention gives late queries more work than early ones. With c devices
a row is cut into 2c pieces, and device i gets the i-th from the front and the
i-th from the back:

  c = 2    pieces 0 1 2 3    device 0: 0 3    device 1: 1 2

Work is then equal where a sample fills its row. It is equal, too, where many
short ones are packed into it, since each piece has the same number of tokens.

`spread` and `collect` move tokens once before and once after a decoder's
layers; nothing moves in between but keys and values.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from align_jax.parallel.layout import ROWS, Layout


def balances(length: int, layout: Layout) -> bool:
  """Whether rows of this length are dealt out on this mesh."""
  shards = layout.shards(("context",))
  return shards > 1 and length % (2 * shards) == 0


def zigzag(length: int, shards: int) -> np.ndarray:
  """i32[length]: which token stands at each place."""
  pieces = np.arange(length, dtype=np.int32).reshape(2 * shards, -1)
  order = [p for i in range(shards) for p in (i, 2 * shards - 1 - i)]
  return pieces[order].reshape(-1)


def in_order(x: jax.Array, shards: int, balanced: bool) -> jax.Array:
  """What was dealt out and gathered, [B,L,...], in the order of the row."""
  if not balanced:
    return x
  pieces = x.reshape(x.shape[0], 2 * shards, -1, *x.shape[2:])
  order = np.argsort([p for i in range(shards)
                      for p in (i, 2 * shards - 1 - i)])
  return jnp.concatenate([pieces[:, p] for p in order], axis=1)


def spread(x: jax.Array, layout: Layout, axis: int = 1) -> jax.Array:
  """[B,L,...] in the order of the row -> as dealt out; L is at `axis`."""
  c = layout.shards(("context",))
  home = lambda piece: min(piece, 2 * c - 1 - piece)

  def local(x: jax.Array) -> jax.Array:
    first, second = jnp.split(x, 2, axis)
    even = jax.lax.ppermute(first, "context",
                            [(i, home(2 * i)) for i in range(c)])
    odd = jax.lax.ppermute(second, "context",
                           [(i, home(2 * i + 1)) for i in range(c)])
    return jnp.concatenate(_swapped(even, odd), axis)

  return _on_mesh(local, x, layout, axis)


def collect(x: jax.Array, layout: Layout, axis: int = 1) -> jax.Array:
  """The inverse of `spread`."""
  c = layout.shards(("context",))
  piece = lambda device, even: (
      device if (device % 2 == 0) == even else 2 * c - 1 - device)

  def local(x: jax.Array) -> jax.Array:
    even, odd = _swapped(*jnp.split(x, 2, axis))
    first = jax.lax.ppermute(even, "context", [
        (i, piece(i, True) // 2) for i in range(c)])
    second = jax.lax.ppermute(odd, "context", [
        (i, piece(i, False) // 2) for i in range(c)])
    return jnp.concatenate([first, second], axis)

  return _on_mesh(local, x, layout, axis)


def _swapped(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(a, b) on even devices, (b, a) on odd ones.

  Device d holds the pieces d and 2c - 1 - d, in this order: one of them is
  of even number, the first where d is even.
  """
  even = jax.lax.axis_index("context") % 2 == 0
  return jnp.where(even, a, b), jnp.where(even, b, a)


def _on_mesh(local: Callable[[jax.Array], jax.Array], x: jax.Array,
             layout: Layout, axis: int) -> jax.Array:
  rows = (ROWS if x.shape[axis - 1] % layout.shards(ROWS) == 0 else None)
  spec = P(*(None,) * (axis - 1), rows, "context")
  return jax.shard_map(local, mesh=layout.mesh, in_specs=spec, out_specs=spec,
                       check_vma=False)(x)
