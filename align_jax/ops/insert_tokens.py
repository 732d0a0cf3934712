"""Visual tokens enter the sequence: a gather inside each row.

  bank of a row    [ image 0: T | image 1: T | ... | special tokens: X ]
  visual_index     -1 for text, otherwise a place in that bank

  tokens           <bos>  img  img  img  what  is  this
  visual_index      -1     0    1    2    -1   -1   -1
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def insert_tokens(text: jax.Array, bank: jax.Array,
                  visual_index: jax.Array) -> jax.Array:
  """Text embeddings, with visual tokens where `visual_index` says so.

  Args:
    text: f[B,L,D].
    bank: f[B,S,D]; each place is used at most once in its row.
    visual_index: i32[B,L], -1 or a place in the row's bank.

  Returns:
    f[B,L,D] in text's dtype.
  """
  place = jnp.maximum(visual_index, 0)[:, :, None]
  visual = jnp.take_along_axis(bank, place, axis=1)
  return jnp.where(visual_index[:, :, None] >= 0,
                   visual.astype(text.dtype), text)


def _forward(text, bank, visual_index):
  # Empty arrays carry dtypes and sizes to the backward pass at no cost.
  shapes = (jnp.zeros((0,), text.dtype),
            jnp.zeros((0, bank.shape[1]), bank.dtype))
  return insert_tokens(text, bank, visual_index), (shapes, visual_index)


def _backward(residuals, grad):
  # The transpose of a gather is a scatter-add, which partitions badly. Each
  # place is used at most once, so the inverse is again a gather: from every
  # place of the bank to the position that used it (L means nobody).
  (text, bank), visual_index = residuals
  length, places = visual_index.shape[1], bank.shape[1]

  def invert(row: jax.Array) -> jax.Array:
    used = jnp.where(row >= 0, row, places)  # text falls off the end
    return jnp.full(places, length).at[used].set(
        jnp.arange(length), mode="drop")

  position = jax.vmap(invert)(visual_index)
  from_position = jnp.take_along_axis(
      grad, jnp.minimum(position, length - 1)[:, :, None], axis=1)
  grad_bank = jnp.where(position[:, :, None] < length, from_position, 0)
  grad_text = jnp.where(visual_index[:, :, None] >= 0, 0, grad)
  return grad_text.astype(text.dtype), grad_bank.astype(bank.dtype), None


insert_tokens.defvjp(_forward, _backward)
