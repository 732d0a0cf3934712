"""Products of bf16 matrices as fast as a CPU has them.

XLA's CPU compiler multiplies bf16 as it is where the result is f32. Where it
is bf16 both sides are widened to f32 first, and that product takes twice as
long. Either way sums are f32 and the result is rounded once.
"""

import functools

import jax
import jax.numpy as jnp

from align_jax.parallel.layout import Layout


def einsum(equation: str, x: jax.Array, y: jax.Array,
           layout: Layout) -> jax.Array:
  """jnp.einsum of two arrays.

  Args:
    equation: in letters alone, each of which stands in two of its three
      terms.
    x: f[...].
    y: f[...].
    layout: the mesh, whose devices say how to ask.
  """
  if layout.platform != "cpu" or {x.dtype, y.dtype} != {jnp.dtype("bfloat16")}:
    return jnp.einsum(equation, x, y)
  return _rounded(equation, x, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rounded(equation, x, y):
  return jnp.einsum(equation, x, y,
                    preferred_element_type=jnp.float32).astype(x.dtype)


def _forward(equation, x, y):
  return _rounded(equation, x, y), (x, y)


def _backward(equation, inputs, grad):
  x, y = inputs
  given, out = equation.split("->")
  of_x, of_y = given.split(",")
  return (_rounded(f"{out},{of_y}->{of_x}", grad, y),
          _rounded(f"{of_x},{out}->{of_y}", x, grad))


_rounded.defvjp(_forward, _backward)
