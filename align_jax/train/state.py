"""What a step changes, and where each array of it lives."""

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from align_jax.train.select import Flat


@struct.dataclass
class TrainState:
  """The state of one stage.

  Attributes:
    step: i32[], steps of this stage done.
    trained: {key: f32 master}.
    frozen: {path: array}, in the dtype it was initialised with; never has
      optimizer state.
    opt_state: of `trained` alone.
  """
  step: jax.Array
  trained: Flat
  frozen: Flat
  opt_state: optax.OptState


def abstract_state(trained: Flat, frozen: Flat,
                   tx: optax.GradientTransformation,
                   mesh: Mesh) -> TrainState:
  """Shapes, dtypes and shardings of a state; `frozen` itself is kept.

  Moments lie as their parameter does, counts on every device.

  Args:
    trained: {key: array or ShapeDtypeStruct with a sharding}.
    frozen: {path: array}.
    tx: the stage's optimizer.
    mesh: the run's.
  """
  everywhere = NamedSharding(mesh, P())

  def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = everywhere
    for entry in path:
      key = getattr(entry, "key", None)
      if key in trained and leaf.shape == trained[key].shape:
        sharding = trained[key].sharding
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  shapes = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            for k, x in trained.items()}
  return TrainState(
      step=jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere),
      trained=shapes, frozen=frozen,
      opt_state=jax.tree_util.tree_map_with_path(
          place, jax.eval_shape(tx.init, shapes)))


def new_state(trained: Flat, frozen: Flat, tx: optax.GradientTransformation,
              mesh: Mesh) -> TrainState:
  """A state at step 0, each array in its shards."""
  where = shardings_of(abstract_state(trained, frozen, tx, mesh))
  return TrainState(
      step=jax.jit(lambda: jnp.zeros([], jnp.int32),
                   out_shardings=where.step)(),
      trained=trained, frozen=frozen,
      opt_state=jax.jit(tx.init, out_shardings=where.opt_state)(trained))


def shardings_of(state: TrainState) -> TrainState:
  """The sharding of every array of a state."""
  return jax.tree.map(lambda x: x.sharding, state)
