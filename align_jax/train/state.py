"""What a step changes, and where each array of it lives."""

from collections.abc import Mapping

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


def opt_shardings(tx: optax.GradientTransformation,
                  trained: Mapping[str, jax.Array],
                  shardings: Mapping[str, NamedSharding],
                  mesh: Mesh) -> optax.OptState:
  """Moments lie as their parameter does; counts lie everywhere."""
  shapes = jax.eval_shape(tx.init, dict(trained))

  def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    for entry in reversed(path):
      key = getattr(entry, "key", None)
      if key in shardings and leaf.shape == trained[key].shape:
        return shardings[key]
    return NamedSharding(mesh, P())

  return jax.tree_util.tree_map_with_path(place, shapes)


def new_state(trained: Flat, frozen: Flat, tx: optax.GradientTransformation,
              mesh: Mesh) -> TrainState:
  """A state at step 0, each array in its shards.

  Args:
    trained: {key: array on the mesh}.
    frozen: {path: array on the mesh}.
    tx: the stage's optimizer.
    mesh: the run's.
  """
  shardings = {k: v.sharding for k, v in trained.items()}
  moments = opt_shardings(tx, trained, shardings, mesh)
  opt_state = jax.jit(tx.init, out_shardings=moments)(trained)
  step = jax.jit(lambda: jnp.zeros([], jnp.int32),
                 out_shardings=NamedSharding(mesh, P()))()
  return TrainState(step=step, trained=trained, frozen=frozen,
                    opt_state=opt_state)


def shardings_of(state: TrainState) -> TrainState:
  """The sharding of every array of a state."""
  return jax.tree.map(lambda x: x.sharding, state)
