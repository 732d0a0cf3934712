"""What an optimised program does: products, memory traffic, collectives."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from align_jax.ops.attention_splash import SHARE
from align_jax.plan.hlo import (
  Computation,
  Op,
  Program,
  Shape,
  Visit,
  trip_count,
  walk,
)

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all",
               "collective-permute", "collective-broadcast",
               "ragged-all-to-all")

# These move nothing, or what they move is counted elsewhere.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast",
         "while", "conditional", "call", "after-all", "partition-id",
         "replica-id", "opt-barrier", "iota", "domain", "get-dimension-size"}

# {1}: (0, {}), of a fusion: its second result lies over its first operand.
_ALIASING = re.compile(r"output_to_operand_aliasing=\{.*?\)\}")
_CARRIED = re.compile(r"\{(\d*)\}: \((\d+), \{\}\)")


@dataclasses.dataclass(frozen=True)
class Collective:
  """A transfer between devices, of one device's program.

  Attributes:
    kind: one of COLLECTIVES.
    shapes: of what it moves: the larger of its two sides.
    payload: bytes of that side.
    wire: bytes that one device sends to others each time.
    groups: rows of devices that take part together, i32[groups, members].
    times: how often a step runs it.
    loops: turns of the loops around it, outermost first.
    op_name: where it comes from.
  """
  kind: str
  shapes: tuple[Shape, ...]
  payload: float
  wire: float
  groups: np.ndarray
  times: float
  loops: tuple[int, ...]
  op_name: str


@dataclasses.dataclass(frozen=True)
class Measured:
  """One device's share of a step.

  Attributes:
    flops: of matrix products, recomputation included.
    flops_by_part: of them, by part of the model where the program tells.
    traffic: bytes to and from main memory, as far as instructions say.
    collectives: each of them.
    uncosted: custom calls that declare no cost and are not known here.
    unknown_loops: loops whose turns the program does not tell, counted once.
  """
  flops: float
  flops_by_part: Mapping[str, float]
  traffic: float
  collectives: tuple[Collective, ...]
  uncosted: Mapping[str, int]
  unknown_loops: int


def measure(program: Program, devices: int) -> Measured:
  """Counts a program.

  Args:
    program: of one device, as `hlo.parse` gives it.
    devices: that run it together.
  """
  flops, traffic, unknown = 0.0, 0.0, 0
  by_part: dict[str, float] = defaultdict(float)
  uncosted: dict[str, int] = defaultdict(int)
  collectives: dict[Any, Collective] = {}
  for visit in walk(program):
    op, inside = visit.op, visit.inside
    kind = op.opcode.removesuffix("-start")
    if op.opcode in ("dot", "convolution"):
      work = visit.times * (_dot(op, inside) if op.opcode == "dot"
                            else _convolution(op, inside))
      flops += work
      by_part[part_of(op.op_name)] += work
    elif op.opcode == "custom-call":
      work = declared_cost(op, inside)
      if work is None:
        if not _harmless(op):
          uncosted[target(op)] += 1
      else:
        flops += visit.times * work
        by_part[part_of(op.op_name)] += visit.times * work
    elif kind in COLLECTIVES:
      channel = re.search(r"channel_id=(\d+)", op.attrs)
      key = channel[1] if channel else op.name
      # An asynchronous one stands in several fusions, under one channel: in
      # that which starts it, in those that carry it on, maybe inside a loop,
      # and in that which ends it. It runs as often as it is started.
      starts = any(o.opcode == "custom-call" and "AsyncCollectiveStart"
                   in o.attrs for o in inside.values())
      if kind == "all-reduce" and visit.fused and _scattered(op, inside):
        kind = "reduce-scatter"
      if key not in collectives or starts:
        collectives[key] = _collective(op, inside, kind, visit, devices)
    elif op.opcode == "while":
      unknown += trip_count(program, op, inside) is None
    if not visit.fused:
      traffic += visit.times * _traffic(op, inside, program)
  return Measured(flops, dict(by_part), traffic, tuple(collectives.values()),
                  dict(uncosted), unknown)


def part_of(op_name: str) -> str:
  """tower, connector, decoder, head or other, from a name's path."""
  if "objective." in op_name:
    return "head"
  for name in reversed(re.split(r"[/().]+", op_name)):
    if name in ("tower", "connector", "decoder", "text"):
      return name
  return "other"


def _operand(op: Op, inside: Computation, i: int) -> Shape | None:
  found = inside.get(op.operands[i]) if i < len(op.operands) else None
  return found.shapes[0] if found is not None and found.shapes else None


def _dims(attrs: str, name: str) -> list[int]:
  found = re.search(rf"\b{name}=\{{([\d,]*)\}}", attrs)
  return [int(d) for d in found[1].split(",") if d] if found else []


def _dot(op: Op, inside: Computation) -> float:
  left = _operand(op, inside, 0)
  if left is None:
    return 0.0
  contracted = _dims(op.attrs, "lhs_contracting_dims")
  return 2.0 * op.shapes[0].size * math.prod(left.dims[d] for d in contracted)


def _convolution(op: Op, inside: Computation) -> float:
  """Multiplications with what is really there, not with padding or holes."""
  left, right = _operand(op, inside, 0), _operand(op, inside, 1)
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.attrs)
  if left is None or right is None or labels is None:
    return 0.0
  of_left, of_right, of_out = labels.groups()
  window = _window(op.attrs)
  count = 1.0
  for i in range(len(of_left) - 2):
    place = str(i)
    count *= _taps(left.dims[of_left.index(place)],
                   right.dims[of_right.index(place)],
                   op.shapes[0].dims[of_out.index(place)],
                   {k: v[i] for k, v in window.items() if i < len(v)})
  batches = re.search(r"batch_group_count=(\d+)", op.attrs)
  count *= left.dims[of_left.index("b")] / (int(batches[1]) if batches else 1)
  return (2.0 * count * right.dims[of_right.index("i")]
          * right.dims[of_right.index("o")])


def _window(attrs: str) -> dict[str, list]:
  found = re.search(r"window=\{([^}]*)\}", attrs)
  window: dict[str, list] = {}
  for item in (found[1].split() if found else ()):
    name, _, value = item.partition("=")
    if name == "pad":
      window[name] = [tuple(map(int, p.split("_"))) for p in value.split("x")]
    elif value[:1].isdigit():
      window[name] = [int(n) for n in value.split("x")]
  return window


def _taps(source: int, kernel: int, out: int, window: Mapping) -> float:
  """Pairs of an output's and a kernel's place that meet a real input."""
  stride, holes = window.get("stride", 1), window.get("lhs_dilate", 1)
  apart, pad = window.get("rhs_dilate", 1), window.get("pad", (0, 0))[0]
  if kernel == 1 and pad == 0 and holes == 1:
    return out
  if kernel * out > 4_000_000:  # in slices, to bound what is held
    return sum(_meet(source, np.arange(k, k + 1), out, stride, holes, apart,
                     pad) for k in range(kernel))
  return _meet(source, np.arange(kernel), out, stride, holes, apart, pad)


def _meet(source: int, places: np.ndarray, out: int, stride: int, holes: int,
          apart: int, pad: int) -> float:
  at = (np.arange(out)[:, None] * stride - pad + places[None] * apart)
  return float(((at % holes == 0) & (at >= 0)
                & (at <= (source - 1) * holes)).sum())


def target(op: Op) -> str:
  found = re.search(r'custom_call_target="([^"]*)"', op.attrs)
  return found[1] if found else "?"


def declared_cost(op: Op, inside: Computation) -> float | None:
  """FLOPs that a custom call does; None where nothing tells.

  A Pallas kernel's own estimate, or the product that a library is called for.
  Splash attention has no estimate, but a scope that tells its share of the
  square (ops/attention_splash.py).
  """
  splash = re.search(SHARE + r"(\d+).*splash_mha_(fwd|dq|dkv)", op.op_name)
  if splash:
    # Operands are masks, then q f[b,h,l,k], k f[b,g,s,k], and others.
    floats = [s for i in range(len(op.operands))
              if (s := _operand(op, inside, i)) and s.dtype in (
                  "bf16", "f32", "f16") and len(s.dims) > 2]
    square = floats[0].size * floats[1].dims[-2]
    products = {"fwd": 2, "dq": 3, "dkv": 4}[splash[2]]
    return 2.0 * products * square * int(splash[1]) / 1e6
  estimate = re.search(r'cost_estimate\\?":\s*\{[^}]*?flops\\?":\s*\\?"?'
                       r"([\d.e+]+)", op.attrs)
  if estimate:
    return float(estimate[1])
  if "gemm" in target(op) or "matmul" in target(op):
    left = _operand(op, inside, 0)
    contracted = re.search(
        r'lhs_contracting_dimensions\\?":\[([^\]]*)\]', op.attrs)
    if left is not None and contracted:
      sizes = re.findall(r"\d+", contracted[1])
      out = max(op.shapes, key=lambda s: s.size)
      return 2.0 * out.size * math.prod(left.dims[int(d)] for d in sizes)
  return None


def _harmless(op: Op) -> bool:
  """Custom calls that multiply nothing."""
  return bool(re.search(
      r"Sharding|Allocate|TopK|Rng|Gather|MoveTo|annotate|Async|Pad|"
      r"SliceToDynamic|ConcatBitcast|Sort|Profile", target(op)))


def _collective(op: Op, inside: Computation, kind: str, visit: Visit,
                devices: int) -> Collective:
  groups = device_groups(op.attrs, devices)
  members = groups.shape[1]
  into = tuple(s for name in op.operands if name in inside
               for s in inside[name].shapes)
  out = op.shapes
  sent, got = sum(s.bytes for s in into), sum(s.bytes for s in out)
  if op.opcode.endswith("-start") and kind != "all-reduce":
    got -= sent  # the result of a start repeats what went in
  shapes = into if sent >= got else out
  payload = max(sent, got)
  share = (members - 1) / members
  wire = {"all-gather": payload * share, "all-reduce": 2 * sent * share,
          "reduce-scatter": payload * share}.get(kind, sent * share)
  if kind == "collective-permute":
    wire = sent
  return Collective(kind, shapes, payload, wire, groups, visit.times,
                    visit.loops, op.op_name)


def _scattered(op: Op, inside: Computation) -> bool:
  """Whether of what a fused all-reduce gives a slice alone leaves the fusion.

  So TPUs write a reduce-scatter: one fusion, of one emitter, that sends half
  of what an all-reduce does.
  """
  names = {op.name}
  for other in inside.values():
    if other.opcode in ("bitcast", "get-tuple-element") and (
        names & set(other.operands)):
      names.add(other.name)
  users = [o for o in inside.values() if o.name not in names
           and names & set(o.operands)]
  return bool(users) and all(o.opcode == "dynamic-slice" for o in users)


def device_groups(attrs: str, devices: int) -> np.ndarray:
  """Which devices take part together, i32[groups, members]."""
  named = re.search(
      r"replica_groups=mesh\[([^\]]*)\](?:,\s*device_ids=\(([^{]*)\))?\s*"
      r"\{([^}]*)\}", attrs)
  if named:
    sizes = dict((name, int(n)) for name, n in
                 re.findall(r"'(\w+)'=(\d+)", named[1]))
    chosen = re.findall(r"'(\w+)'", named[3])
    names = list(sizes)
    places = np.arange(math.prod(sizes.values()))
    order = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", named[2] or "")
    if order:
      places = _dealt(places, order[1], order[2])
    places = places.reshape(tuple(sizes.values()))
    inner = [names.index(n) for n in chosen]
    outer = [i for i in range(len(names)) if i not in inner]
    return places.transpose(outer + inner).reshape(
        -1, math.prod(sizes[n] for n in chosen))
  listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attrs)
  if listed:
    rows = [[int(d) for d in row.split(",") if d]
            for row in re.findall(r"\{([\d,]*)\}", listed[1])]
    return np.array(rows)
  short = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\]"
                    r"(?:T\(([\d,]+)\))?", attrs)
  if short:
    count = math.prod(map(int, short[2].split(",")))
    places = _dealt(np.arange(count), short[2], short[3])
    return places.reshape([int(n) for n in short[1].split(",")])
  pairs = re.search(r"source_target_pairs=\{([\d,{}]*)\}", attrs)
  if pairs:  # those that a first device reaches, hop by hop
    hops = dict(tuple(map(int, pair.split(",")))
                for pair in re.findall(r"\{(\d+,\d+)\}", pairs[1]))
    ring = [next(iter(hops))]
    while (following := hops.get(ring[-1])) is not None and (
        following not in ring):
      ring.append(following)
    return np.array([ring])
  return np.arange(devices).reshape(1, -1)


def _dealt(places: np.ndarray, shape: str, axes: str | None) -> np.ndarray:
  """Devices laid out in a shape, its axes then in another order."""
  numbers = lambda text: [int(n) for n in text.split(",")]
  places = places.reshape(numbers(shape))
  return places.transpose(numbers(axes)) if axes else places


def _traffic(op: Op, inside: Computation, program: Program) -> float:
  """Bytes of main memory that an instruction reads and writes."""
  if op.opcode in _FREE or op.opcode.endswith("-done"):
    return 0.0
  main = lambda shapes: sum(s.bytes for s in shapes if s.space == 0)
  operands = [inside[n] for n in op.operands if n in inside]
  if op.opcode == "dynamic-slice" or op.opcode in ("slice", "gather"):
    return 2 * main(op.shapes)
  if op.opcode == "dynamic-update-slice":
    return 2 * main(operands[1].shapes) if len(operands) > 1 else 0.0
  if op.opcode.endswith("-start"):  # what is copied, on each side
    sides = [*op.shapes[:2]] if len(op.shapes) > 1 else list(op.shapes)
    size = min((s.bytes for s in sides if s.size > 1), default=0.0)
    return size * sum(s.space == 0 for s in sides)
  if op.opcode == "fusion":
    called = (op.called("calls") or [""])[0]
    return _fusion_traffic(op, operands, program.computations.get(called, {}))
  return main(op.shapes) + sum(main(o.shapes) for o in operands)


def _fusion_traffic(op: Op, operands: list[Op],
                    body: Computation) -> float:
  """A fusion reads the slices it takes, and writes in place what it updates.

  What an asynchronous collective is filling is carried through the fusions
  between its start and its end, result over operand: that moves nothing.
  """
  carried = _CARRIED.findall((_ALIASING.search(op.attrs) or [""])[0])
  over, under = ({int(pair[i] or 0) for pair in carried} for i in (0, 1))
  users: dict[str, list[Op]] = defaultdict(list)
  numbered: dict[int, Op] = {}
  for inner in body.values():
    for name in inner.operands:
      users[name].append(inner)
    if inner.opcode == "parameter":
      value = re.search(r"value=(\d+)$", inner.attrs)
      numbered[int(value[1])] = inner
  read, in_place = 0.0, 0.0
  for i, operand in enumerate(operands):
    if (i not in numbered or i in under or not operand.shapes
        or operand.shapes[0].space):
      continue
    whole, uses = operand.shapes[0].bytes, users[numbered[i].name]
    if uses and all(u.opcode in ("dynamic-slice", "slice", "gather")
                    and u.operands[0] == numbered[i].name for u in uses):
      read += min(whole, sum(u.shapes[0].bytes for u in uses))
    elif uses and all(u.opcode == "dynamic-update-slice"
                      and u.operands[0] == numbered[i].name for u in uses):
      for use in uses:
        part = body[use.operands[1]].shapes[0].bytes
        read += part
        in_place += whole - part
    else:
      read += whole
  written = sum(s.bytes for i, s in enumerate(op.shapes)
                if s.space == 0 and i not in over)
  return read + max(written - in_place, 0.0)
