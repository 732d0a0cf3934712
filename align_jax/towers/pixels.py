"""From the host's bytes to what a tower reads, on the device.

A quarter of the bytes travel, and padding is exact: outside an image's box
the result is zero, the value that padding has *after* normalisation.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def normalise(
    images: jax.Array,
    boxes: jax.Array | None,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: Any = jnp.float32,
) -> jax.Array:
  """(pixel / 255 - mean) / std inside the box, 0 outside.

  Args:
    images: u8[I,H,W,3].
    boxes: i32[I,4], (y0, x0, y1, x1) with y1 and x1 just outside; an empty
      slot has an empty box. None means that every pixel is valid.
    mean: of each colour, on the scale 0 to 1.
    std: of each colour, on the scale 0 to 1.
    dtype: of the result; the arithmetic is f32.

  Returns:
    f[I,H,W,3].

  Raises:
    ValueError: images that are not u8[I,H,W,3], or boxes that are not [I,4].
  """
  if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != 3:
    raise ValueError(
        "normalise takes raw pixels u8[I,H,W,3] (0 to 255), not "
        f"{images.dtype}{list(images.shape)}")
  x = images.astype(jnp.float32) / 255.0
  x = (x - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
  if boxes is not None:
    if boxes.shape != (images.shape[0], 4):
      raise ValueError(
          f"boxes for {images.shape[0]} images are i32[{images.shape[0]},4], "
          f"not {boxes.dtype}{list(boxes.shape)}")
    y0, x0, y1, x1 = (boxes[:, i, None] for i in range(4))
    rows = jnp.arange(images.shape[1])
    cols = jnp.arange(images.shape[2])
    inside = (((rows >= y0) & (rows < y1))[:, :, None]
              & ((cols >= x0) & (cols < x1))[:, None, :])
    x = jnp.where(inside[..., None], x, 0.0)
  return x.astype(dtype)
