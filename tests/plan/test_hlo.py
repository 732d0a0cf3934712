"""Programs read back: loops, products, transfers, on text made for it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from align_jax.config import MeshConfig
from align_jax.parallel.mesh import make_mesh
from align_jax.plan.hlo import parse, trip_count, walk
from align_jax.plan.measure import device_groups, measure

# A loop of 5 turns with a product of 2*8*16*16 and a gather that is carried
# on inside; a batched product written as a convolution, as TPUs do.
PROGRAM = (Path(__file__).parent / "loop.hlo").read_text()


def test_a_loop_counts_every_turn_from_its_first():
  program = parse(PROGRAM)
  loop = program.computations["main"]["loop"]
  assert trip_count(program, loop, program.computations["main"]) == 5
  dot = next(v for v in walk(program) if v.op.opcode == "dot")
  assert dot.times == 5 and dot.loops == (5,)


def test_products_are_counted_with_their_turns():
  found = measure(parse(PROGRAM), 16)
  loop = 5 * 2 * 8 * 16 * 16
  # Of the 4 x 4 pairs of places only the 4 on the diagonal meet anything.
  batched = 2 * 4 * 8 * 16 * 32
  assert found.flops == loop + batched
  assert found.flops_by_part["decoder"] == loop


def test_a_transfer_carried_through_a_loop_is_counted_once():
  gathers = [c for c in measure(parse(PROGRAM), 16).collectives
             if c.kind == "all-gather"]
  assert len(gathers) == 1
  assert gathers[0].times == 1 and gathers[0].loops == ()
  assert gathers[0].wire == 16 * 64 * 2 * 15 / 16


def test_a_transfer_inside_a_loop_is_counted_every_turn():
  reduce = next(c for c in measure(parse(PROGRAM), 16).collectives
                if c.kind == "all-reduce")
  assert reduce.times == 5 and reduce.loops == (5,)
  assert reduce.groups.tolist() == [[0, 1], [2, 3]]
  assert reduce.wire == 2 * 8 * 128_256 * 4 / 2


@pytest.mark.parametrize("text, groups", [
    ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
    ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}",
     [[0, 1], [2, 3]]),
    ("replica_groups={}", [[0, 1, 2, 3]]),
    ("source_target_pairs={{0,1},{1,0},{2,3},{3,2}}", [[0, 1]]),
])
def test_groups_of_devices_are_read_in_every_spelling(text, groups):
  assert device_groups(text, 4).tolist() == groups


def test_text_that_is_no_program_is_refused():
  with pytest.raises(ValueError, match="no entry computation"):
    parse("not a program")


def test_a_compiled_scan_counts_as_computed_by_hand():
  mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
  place = lambda *spec: NamedSharding(mesh, P(*spec))

  def f(w, x):
    def layer(x, w):
      w = jax.lax.with_sharding_constraint(w, place())  # gathered
      x = jnp.tanh(x @ w)
      return jax.lax.with_sharding_constraint(x, place("fsdp")), None
    y, _ = jax.lax.scan(layer, x, w)
    return (y * y).sum(0)

  compiled = jax.jit(jax.grad(lambda w, x: f(w, x).sum()), in_shardings=(
      place(None, "fsdp"), place("fsdp"))).lower(
          jax.ShapeDtypeStruct((7, 32, 32), jnp.float32),
          jax.ShapeDtypeStruct((64, 32), jnp.float32)).compile()
  found = measure(parse(compiled.as_text()), 8)
  # 7 layers, forward and two gradients, of 64 / 4 rows a device; the first
  # layer's input needs no gradient but a scan computes it all the same.
  assert found.flops == 7 * 3 * 2 * (64 / 4) * 32 * 32
  assert found.unknown_loops == 0
  gathers = sum(c.times for c in found.collectives
                if c.kind == "all-gather" and np.prod(c.shapes[0].dims) == 1024)
  assert gathers >= 7


SPLASH = '''HloModule m

ENTRY %main (q: bf16[2,4,1024,64]) -> bf16[2,4,1024,64] {
  %mask = s8[1,2,2]{2,1,0} parameter(0)
  %q = bf16[2,4,1024,64]{3,2,1,0} parameter(1)
  %k = bf16[2,2,1024,64]{3,2,1,0} parameter(2)
  %kernel.1 = (f32[2,512,128]{2,1,0}, bf16[2,4,1024,64]{3,2,1,0}) \
custom-call(%mask, %q, %k, %k), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="jit(f)/decoder/splash_share_750000/splash_mha_dq"}
  ROOT %out = bf16[2,4,1024,64]{3,2,1,0} get-tuple-element(%kernel.1), index=1
}
'''


def test_a_kernel_over_several_lines_is_one_that_tells_its_cost():
  program = parse(SPLASH)
  assert list(program.computations["main"])[-1] == "out"
  found = measure(program, 1)
  assert found.uncosted == {}
  # Three products of queries by keys by width, three quarters of each.
  want = 3 * 2 * 2 * 4 * 1024 * 1024 * 64 * 0.75
  assert found.flops_by_part == {"decoder": want} and found.flops == want


SCATTER = '''HloModule m

%all-reduce-scatter (whole: f32[8,128]) -> f32[8,32] {
  %whole = f32[8,128]{1,0} parameter(0)
  %sum = f32[8,128]{1,0} all-reduce(%whole), channel_id=1, \
replica_groups={{0,1,2,3}}, to_apply=%add
  %start = u32[] partition-id()
  %zero = u32[] constant(0)
  ROOT %own = f32[8,32]{1,0} dynamic-slice(%sum, %zero, %start), \
dynamic_slice_sizes={8,32}
}

ENTRY %main (x: f32[8,128]) -> f32[8,32] {
  %x = f32[8,128]{1,0} parameter(0)
  ROOT %out = f32[8,32]{1,0} fusion(%x), kind=kCustom, \
calls=%all-reduce-scatter
}
'''


def test_an_all_reduce_of_which_a_slice_is_kept_sends_half():
  transfer, = measure(parse(SCATTER), 4).collectives
  assert transfer.kind == "reduce-scatter"
  assert transfer.wire == 8 * 128 * 4 * 3 / 4
  whole = SCATTER.replace("dynamic-slice(%sum", "custom-call(%sum")
  transfer, = measure(parse(whole), 4).collectives
  assert transfer.kind == "all-reduce"
  assert transfer.wire == 2 * 8 * 128 * 4 * 3 / 4


CARRIED = '''HloModule m

%async_collective_fusion (part: bf16[64,32], whole: bf16[64,128], a: f32[8]) \
-> (f32[8], bf16[64,32], bf16[64,128]) {
  %part = bf16[64,32]{1,0} parameter(0)
  %whole = bf16[64,128]{1,0} parameter(1)
  %a = f32[8]{0} parameter(2)
  %twice = f32[8]{0} add(%a, %a)
  %gather = bf16[64,128]{1,0} all-gather(%part), channel_id=1, \
replica_groups={{0,1,2,3}}, dimensions={1}
  ROOT %t = (f32[8]{0}, bf16[64,32]{1,0}, bf16[64,128]{1,0}) \
tuple(%twice, %part, %gather)
}

ENTRY %main (part: bf16[64,32], whole: bf16[64,128], a: f32[8]) -> f32[8] {
  %part = bf16[64,32]{1,0} parameter(0)
  %whole = bf16[64,128]{1,0} parameter(1)
  %a = f32[8]{0} parameter(2)
  %step = (f32[8]{0}, bf16[64,32]{1,0}, bf16[64,128]{1,0}) \
fusion(%part, %whole, %a), kind=kOutput, \
output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {})}, \
calls=%async_collective_fusion
  ROOT %out = f32[8]{0} get-tuple-element(%step), index=0
}
'''


def test_what_a_collective_is_filling_moves_nothing_on_its_way():
  assert measure(parse(CARRIED), 4).traffic == 2 * 8 * 4
  alone = CARRIED.replace(
      "output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {})}, ", "")
  assert measure(parse(alone), 4).traffic == (
      2 * 8 * 4 + 2 * 64 * (32 + 128) * 2)
