"""The ALIGN mix at the paper's sizes, compiled for a TPU that is not here.

Nine tiles of 729 patches, Llama-3.2-3B's width and vocabulary, bf16.
"""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from align_jax.bench.vocab_mix import gradients, shapes
from align_jax.config import MeshConfig
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.parallel.topology import tpu_devices

N, V, D = 6561, 128_256, 3072
EVERY = tuple(range(5))


def _compiled(wanted, mesh: Mesh | None, rows: int = 1):
  args = shapes(N, V, D, "bfloat16")
  if mesh is None:
    where = [SingleDeviceSharding(tpu_devices("v5e:2x2")[0])] * 6
  else:
    table, tokens = P("tensor", "fsdp"), P(("replica", "data", "fsdp"))
    where = [NamedSharding(mesh, spec) for spec in (
        tokens, table, P(), P(), table, tokens)]
    args = [jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype)
            if i in (0, 5) else a for i, a in enumerate(args)]
  args = [a.update(sharding=s) for a, s in zip(args, where)]
  layout = Layout(mesh)
  return jax.jit(lambda *a: gradients("stream", wanted, layout, *a)).lower(
      *args).compile()


def _arrays(text: str):
  for dims in re.findall(r"\w+\[([\d,]+)\]", text):
    yield [int(d) for d in dims.split(",")]


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [(0,), EVERY], ids=["h", "every"])
def test_one_chip_holds_no_array_of_tokens_by_words(wanted):
  compiled = _compiled(wanted, None)
  for sizes in _arrays(compiled.as_text()):
    assert math.prod(sizes) < N * V
    assert sum(s >= N and s not in (V, D) for s in sizes) < 2
  temporary = compiled.memory_analysis().temp_size_in_bytes
  if wanted == EVERY:  # bf16 gradients of both tables add up in f32
    temporary -= 2 * 4 * V * D
  print(f"{wanted}: {temporary / 2**20:.0f} MiB of temporaries")
  assert temporary < 0.1 * jnp.dtype(jnp.bfloat16).itemsize * N * V


@pytest.mark.slow
def test_on_a_slice_tables_travel_outside_of_loops_and_stay_cut():
  """Words over tensor, widths and rows over fsdp."""
  mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=4),
                   tpu_devices("v5e:4x4"))
  compiled = _compiled(EVERY, mesh, rows=4)
  text = compiled.as_text()
  blocks = dict(re.findall(
      r"^(?:ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, re.M | re.S))
  inside, todo = set(), re.findall(r"body=%?([\w.\-]+)", text)
  while todo:
    name = todo.pop()
    if name in inside or name not in blocks or name.startswith(
        "async_collective_fusion"):
      continue
    inside.add(name)
    todo += re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)",
                       blocks[name])
  moved = r"(all-gather|all-reduce|reduce-scatter|all-to-all)(?:-start)?\("
  assert not [n for n in inside if re.search(moved, blocks[n])]
  for line in re.findall(r"= ([^\n]*?) all-gather(?:-start)?\(", text):
    assert all(V not in sizes for sizes in _arrays(line))  # V / 4 at most
  memory = compiled.memory_analysis()
  assert memory.temp_size_in_bytes < 2**32
