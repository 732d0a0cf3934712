"""Position embeddings of one grid, read on another (DINOv2, 2304.07193)."""

import jax
import jax.numpy as jnp
import numpy as np


def cubic_weights(learnt: int, wanted: int, antialias: bool) -> np.ndarray:
  """The linear map of bicubic resampling along one axis.

  Sample centres are aligned (half-pixel). Without `antialias` it is torch's
  `interpolate(mode="bicubic", align_corners=False)`: the kernel with
  a = -0.75, edges repeated. With it, that function's `antialias=True`: the
  kernel with a = -0.5, widened when shrinking, weights renormalised at the
  edges.

  Args:
    learnt: length of the axis that is there.
    wanted: length of the axis asked for.
    antialias: see above.

  Returns:
    f64[wanted, learnt], rows add up to 1.
  """
  a, scale = (-0.5 if antialias else -0.75), learnt / wanted
  width = max(scale, 1.0) if antialias else 1.0
  weights = np.zeros((wanted, learnt))
  for row in range(wanted):
    centre = (row + 0.5) * scale - 0.5
    reach = int(np.ceil(2 * width))
    places = np.arange(int(np.floor(centre)) - reach,
                       int(np.floor(centre)) + reach + 2)
    d = np.abs(places - centre) / width
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    kernel = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
    if antialias:
      kernel = np.where((places >= 0) & (places < learnt), kernel, 0.0)
      kernel = kernel / kernel.sum()
    np.add.at(weights[row], np.clip(places, 0, learnt - 1), kernel)
  return weights


def on_grid(position_pc: jax.Array, first: int, grid: int,
            antialias: bool) -> jax.Array:
  """Embeddings learnt on a square grid, for the patches of another.

  Args:
    position_pc: f[first + learnt * learnt, C]; the first ones belong to no
      patch and stay.
    first: how many those are.
    grid: patches on a side of the grid asked for.
    antialias: see `cubic_weights`.

  Returns:
    f[first + grid * grid, C], in the dtype given; computed in f32.
  """
  learnt = round((position_pc.shape[0] - first) ** 0.5)
  if learnt == grid:
    return position_pc
  w_gl = jnp.asarray(cubic_weights(learnt, grid, antialias), jnp.float32)
  square = position_pc[first:].astype(jnp.float32)
  square = square.reshape(learnt, learnt, -1)
  moved = jnp.einsum("yi,xj,ijc->yxc", w_gl, w_gl, square)
  moved = moved.reshape(grid * grid, -1).astype(position_pc.dtype)
  return jnp.concatenate([position_pc[:first], moved])
