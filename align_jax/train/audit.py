"""Proof that a stage moved what it trains, and nothing else.

Fingerprints are taken on the devices: 64 bits an array, of every bit of it
and its place, by sums that wrap, so that they do not depend on how an array
is sharded.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

Fingerprints = dict[str, str]

_PRIMES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)


class AuditError(RuntimeError):
  """A parameter that should have stayed has moved."""


def fingerprints(arrays: Mapping[str, jax.Array]) -> Fingerprints:
  """{name: 16 hexadecimal digits}; equal arrays have equal ones."""
  found = jax.device_get(_fingerprints(dict(arrays)))
  return {name: f"{int(high):08x}{int(low):08x}"
          for name, (high, low) in found.items()}


def moved(before: Fingerprints, after: Fingerprints) -> list[str]:
  """Names whose arrays differ, or that only one side has."""
  return sorted(n for n in before.keys() | after.keys()
                if before.get(n) != after.get(n))


def check_frozen(before: Fingerprints, after: Fingerprints,
                 stage: str) -> None:
  """Refuses a stage in which a frozen array changed.

  Raises:
    AuditError: names the arrays.
  """
  changed = moved(before, after)
  if changed:
    raise AuditError(
        f"stage {stage!r}: {len(changed)} of {len(before)} frozen arrays "
        f"moved: {', '.join(changed[:10])}{' ...' if changed[10:] else ''}")


@jax.jit
def _fingerprints(arrays: dict[str, jax.Array]) -> dict[str, tuple]:
  return {name: _fingerprint(x) for name, x in arrays.items()}


def _fingerprint(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  width = x.dtype.itemsize
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[width]
  bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
  place = jnp.zeros_like(bits)
  for axis in range(x.ndim):
    place = place * jnp.uint32(_PRIMES[1]) + jax.lax.broadcasted_iota(
        jnp.uint32, x.shape, axis)

  def total(first: int, second: int) -> jax.Array:
    mixed = (bits ^ (place * jnp.uint32(first))) * jnp.uint32(second)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(_PRIMES[4])
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)

  return total(_PRIMES[0], _PRIMES[2]), total(_PRIMES[3], _PRIMES[0])
