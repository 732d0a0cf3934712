"""Loads a large checkpoint on eight devices and tells what it took.

  python load_large.py FOLDER     prints one JSON object

Run by test_memory.py in a process of its own, whose memory it watches.
"""

import json
import os
import sys
import threading
import time

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from align_jax.config import MeshConfig
from align_jax.hub import fill
from align_jax.hub.faces import decoder_shapes
from align_jax.hub.pretrained import load_params, read_spec
from align_jax.parallel.mesh import make_mesh


def anon() -> int:
  """RssAnon of this process, bytes."""
  with open("/proc/self/status", encoding="utf-8") as file:
    line = next(x for x in file if x.startswith("RssAnon"))
  return int(line.split()[1]) * 1024


class Watch(threading.Thread):
  """The most memory above the start, beyond the arrays placed so far."""

  def __init__(self) -> None:
    super().__init__()
    self.placed, self.peak, self.done = 0, 0, False
    self.base = anon()

  def run(self) -> None:
    while not self.done:
      self.look()
      time.sleep(0.002)

  def look(self) -> None:
    self.peak = max(self.peak, anon() - self.base - self.placed)


def main(folder: str) -> None:
  mesh = make_mesh(MeshConfig(fsdp=4, tensor=2, data=1))
  spec = read_spec(folder)
  shapes = decoder_shapes(spec.config, jnp.bfloat16, mesh)
  flat = flatten_dict(shapes, sep="/")
  part = {path: s.dtype.itemsize * int(np.prod(s.sharding.shard_shape(
      s.shape))) for path, s in flat.items()}
  shard = sum(size for path, size in part.items()
              if path.startswith("layers/")) / spec.config.layers
  jax.block_until_ready(jax.device_put(np.zeros(8), jax.devices()[7]))

  watch = Watch()
  plain = fill.empty

  def empty(leaf):
    # The pages of an array come when it is zeroed, so it counts from before.
    watch.placed += 8 * leaf.dtype.itemsize * int(np.prod(
        leaf.sharding.shard_shape(leaf.shape)))
    return jax.block_until_ready(plain(leaf))

  fill.empty = empty
  watch.start()
  started = time.monotonic()
  params, _ = load_params(spec, shapes)
  jax.block_until_ready(params)
  seconds = time.monotonic() - started
  watch.look()
  watch.done = True
  watch.join()
  first = np.asarray(params["layers"]["up_df"][1, :5, :3], np.float32)
  print(json.dumps({
      "peak": watch.peak, "placed": watch.placed, "shard": shard,
      "total": 8 * sum(part.values()), "seconds": seconds,
      "up": first.tolist()}))


if __name__ == "__main__":
  main(sys.argv[1])
