"""Where activations live: one rule table, handed to every module.

Modules call `layout.constrain(x, "bld")`, one letter an axis, and import no
mesh. The letters are those of the design:

  b rows            replica, data, fsdp
  i images          every mesh axis (the tower sees all devices)
  l tokens          context
  h heads, f MLP hidden, v vocabulary      tensor
  any other letter  not sharded
"""

import dataclasses
import math

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("replica", "data", "fsdp", "tensor", "context")
ROWS = ("replica", "data", "fsdp")

ACTIVATION_RULES: dict[str, tuple[str, ...]] = {
    "b": ROWS,
    "i": AXES,
    "l": ("context",),
    "h": ("tensor",),
    "f": ("tensor",),
    "v": ("tensor",),
}


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh with the rules for activations; without a mesh, does nothing."""

  mesh: Mesh | None = None

  @property
  def platform(self) -> str:
    """"cpu", "gpu" or "tpu": of the mesh's devices, which may be absent.

    An abstract mesh may name it; of no mesh, or one that is of no devices,
    it is what is at hand.
    """
    if isinstance(self.mesh, Mesh):
      return self.mesh.devices.flat[0].platform
    device = getattr(self.mesh, "abstract_device", None)
    return device.platform if device else jax.default_backend()

  def spec(self, axes: str) -> P:
    """The PartitionSpec of an array whose axes are these letters."""
    return P(*(ACTIVATION_RULES.get(letter) for letter in axes))

  def constrain(self, x: jax.Array, axes: str) -> jax.Array:
    """Asks the compiler to lay `x` out by the rules.

    An axis whose size the mesh does not divide is left to the compiler.
    """
    if self.mesh is None or self.mesh.size == 1:
      return x
    if len(axes) != x.ndim:
      raise ValueError(f"axes {axes!r} for an array of shape {x.shape}")
    names = [ACTIVATION_RULES.get(letter) for letter in axes]
    spec = P(*(n if n and size % self.shards(n) == 0 else None
               for n, size in zip(names, x.shape)))
    return jax.lax.with_sharding_constraint(
        x, NamedSharding(self.mesh, spec))

  def shards(self, names: tuple[str, ...]) -> int:
    """Into how many parts these mesh axes cut an axis."""
    if self.mesh is None:
      return 1
    return math.prod(self.mesh.shape[n] for n in names)
