"""Patches as the square grid that they were cut from.

  f[...,P,C], P = S * S, row by row
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.errors import InputError


def side_of(patches: int, connector: str, factor: int = 1) -> int:
  """S, the patches along an edge.

  Args:
    patches: P.
    connector: its name, for errors.
    factor: what must divide S.

  Raises:
    InputError: the patches make no square, or `factor` does not divide it.
  """
  side = math.isqrt(patches)
  if side * side != patches:
    hint = (" (one too many: does the tower keep its class token? Set "
            "model.tower.class_token=False)"
            if math.isqrt(patches - 1) ** 2 == patches - 1 else "")
    raise InputError(f"connector {connector!r} reads a square grid of "
                     f"patches, not {patches}{hint}")
  if side % factor:
    divisors = [n for n in range(1, side + 1) if side % n == 0]
    raise InputError(
        f"connector {connector!r} joins {factor} patches along an edge, which "
        f"does not divide the {side} x {side} patches of an image (it could "
        f"be one of {', '.join(map(str, divisors))})")
  return side


def square_latents(patches: int, latents: int, connector: str) -> int:
  """M, of a connector whose latents lie on a square grid of their own.

  Args:
    patches: P, which make a square too.
    latents: M.
    connector: its name, for errors.

  Raises:
    InputError: M or P is not a square.
  """
  side_of(patches, connector)
  if math.isqrt(latents) ** 2 != latents:
    raise InputError(f"connector {connector!r} lays its latents on a square "
                     f"grid, not {latents} of them")
  return latents


def fold(x: jax.Array, factor: int) -> jax.Array:
  """Joins `factor` x `factor` neighbours: f[...,P,C] -> f[...,P/f^2,f^2*C].

  The channels of a joined patch are its parts', row by row. Also known as
  pixel shuffle (of the kind that shrinks) and space to depth.
  """
  *outer, patches, width = x.shape
  side = math.isqrt(patches)
  small = side // factor
  x = x.reshape(*outer, small, factor, small, factor, width)
  x = jnp.moveaxis(x, -3, -4)
  return x.reshape(*outer, small * small, factor * factor * width)


def pooling(side: int, out: int) -> np.ndarray:
  """f32[out,side]: averages a line of `side` into `out`, as torch's adaptive
  pooling does: part i is the mean from floor(i s / o) to ceil((i+1) s / o).
  """
  matrix = np.zeros((out, side), np.float32)
  for i in range(out):
    first, last = i * side // out, -(-(i + 1) * side // out)
    matrix[i, first:last] = 1 / (last - first)
  return matrix


def pool(x: jax.Array, side: int, out: int) -> jax.Array:
  """f[I,S,S,C] -> f[I,out,out,C], adaptive average pooling."""
  matrix = jnp.asarray(pooling(side, out), x.dtype)
  return jnp.einsum("ay,bx,iyxc->iabc", matrix, matrix, x)
