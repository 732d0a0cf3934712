"""Tensors of a file straight into the shards of an array.

An array is made on its devices and filled piece by piece: layer by layer of a
stack, and large matrices some rows at a time. So beside the arrays a host
holds one piece in the file's dtype and one in ours, however large the model
is. Devices that hold the same part share the reading of it.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from align_jax.hub import match
from align_jax.hub.keymaps import Family
from align_jax.hub.reader import Reader

# Of a piece of all of a process's shards, in the parameter's own dtype.
PIECE_BYTES = 2 << 20

Cuts = tuple[slice, ...]


def load_flat(
    reader: Reader,
    names: Mapping[str, str],
    family: Family,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    source: str,
) -> tuple[dict[str, jax.Array], dict[str, str]]:
  """Parameters straight into their shards.

  Args:
    reader: the open checkpoint.
    names: the family's keys -> the file's.
    family: whose rules apply.
    shapes: path -> shape, dtype and sharding (None: the default device).
    source: what to call the checkpoint in errors.

  Returns:
    ({path: array}, {path: "file:key", of several files joined by "; "}).

  Raises:
    InputError: missing, unexpected or mis-shaped tensors, all of them.
  """
  match.refuse({("", source): match.faults_of(reader, names, family, shapes)})
  loaded, provenance = {}, {}
  placed = match.places(family, shapes)
  for path, leaf in shapes.items():
    place = placed[path]
    stacked = "{n}" in place.key
    files = [names[k] for k in match.expand(
        place.key, leaf.shape[0] if stacked else 0)]
    loaded[path] = fill(leaf, _layers(reader, files, place, leaf, stacked),
                        stacked, place.transform.outer_axis() + stacked)
    provenance[path] = match.origin(reader, files)
  return loaded, provenance


def _layers(reader: Reader, files: list[str], place: match.Place, leaf: Any,
            stacked: bool) -> Callable[[Cuts], np.ndarray]:
  """Cuts of our array -> their values, in its dtype."""
  inner = leaf.shape[stacked:]

  def fetch(n: int, cut: Cuts) -> np.ndarray:
    return reader.read(files[n], tuple(
        slice(c.start + o, c.stop + o) for c, o in zip(cut, place.origin)))

  def read(cuts: Cuts) -> np.ndarray:
    one = lambda n: place.transform.read(
        functools.partial(fetch, n), inner, cuts[stacked:])
    if not stacked:
      return one(0).astype(leaf.dtype)
    out = np.empty([c.stop - c.start for c in cuts], leaf.dtype)
    for i, n in enumerate(range(cuts[0].start, cuts[0].stop)):
      out[i] = one(n)
    return out

  return read


def fill(leaf: jax.ShapeDtypeStruct, read: Callable[[Cuts], np.ndarray],
         stacked: bool, axis: int) -> jax.Array:
  """An array out of what `read` gives for cuts of it.

  Args:
    leaf: shape, dtype, sharding (None: the default device).
    read: asked for the parts that this process's devices own, in pieces.
    stacked: whether the first axis counts layers.
    axis: along which pieces of a matrix are cut, best the one that lies
      outermost in the file.
  """
  sharding = leaf.sharding
  if sharding is None:
    shard, owners = leaf.shape, {tuple((0, n) for n in leaf.shape): [None]}
  else:
    shard = sharding.shard_shape(leaf.shape)
    owners = {}
    for device, index in sharding.addressable_devices_indices_map(
        leaf.shape).items():
      tag = tuple(cut.indices(size)[:2]
                  for cut, size in zip(index, leaf.shape))
      owners.setdefault(tag, []).append(device)

  def placed(piece: Cuts) -> jax.Array:
    """The same piece of every shard, each on its devices."""
    made: dict[Any, jax.Array] = {}
    for tag, devices in owners.items():
      values = read(tuple(slice(start + cut.start, start + cut.stop)
                          for (start, _), cut in zip(tag, piece)))
      made |= {device: jax.device_put(values, device) for device in devices}
    if sharding is None:
      return made[None]
    shape = tuple((cut.stop - cut.start) * (size // part) for cut, size, part
                  in zip(piece, leaf.shape, shard))
    order = sharding.addressable_devices_indices_map(shape)
    return jax.make_array_from_single_device_arrays(
        shape, sharding, [made[device] for device in order])

  everything = tuple(slice(0, n) for n in shard)
  cut_up = list(pieces(shard, np.dtype(leaf.dtype).itemsize, len(owners),
                       stacked, axis))
  if len(cut_up) == 1:
    return placed(everything)
  whole = empty(leaf)
  for piece in cut_up:
    at = np.asarray([cut.start for cut in piece], np.int32)
    whole = _put(sharding)(whole, placed(piece), at)
    # The next piece is read when this one has arrived and can go.
    whole.block_until_ready()
  return whole


def empty(leaf: jax.ShapeDtypeStruct) -> jax.Array:
  """An array on its devices, to be filled."""
  if leaf.sharding is None:
    return jnp.zeros(leaf.shape, leaf.dtype)
  return jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype),
                 out_shardings=leaf.sharding)()


def pieces(shard: tuple[int, ...], itemsize: int, shards: int, stacked: bool,
           axis: int) -> Iterator[Cuts]:
  """A shard in pieces, or all of it where all shards are one small piece.

  Args:
    shard: its shape.
    itemsize: bytes of an element.
    shards: that this process has; a piece of all of them is PIECE_BYTES at
      most, or one row of each.
    stacked: the first axis counts layers, and a piece is of one.
    axis: along which a layer is cut.
  """
  if math.prod(shard) * itemsize * shards <= PIECE_BYTES:
    yield tuple(slice(0, n) for n in shard)
    return
  row_bytes = shards * itemsize * math.prod(
      n for i, n in enumerate(shard) if i != axis and not (stacked and i == 0))
  step = max(1, min(shard[axis], PIECE_BYTES // max(row_bytes, 1)))
  for layer in range(shard[0]) if stacked else (0,):
    for start in range(0, shard[axis], step):
      cuts = [slice(0, n) for n in shard]
      if stacked:
        cuts[0] = slice(layer, layer + 1)
      cuts[axis] = slice(start, min(start + step, shard[axis]))
      yield tuple(cuts)


@functools.cache
def _put(sharding: Any) -> Callable[..., jax.Array]:
  """Writes a piece over the same part of every shard, in its place."""
  def put(whole: jax.Array, piece: jax.Array, at: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(whole, piece, tuple(at))

  if isinstance(sharding, NamedSharding):
    # Each device by itself: one program for all, and nothing is sent.
    put = jax.shard_map(put, mesh=sharding.mesh,
                        in_specs=(sharding.spec, sharding.spec, P()),
                        out_specs=sharding.spec)
  return jax.jit(put, donate_argnums=0)
