"""The largest things in a device's memory, by name.

Compilers give totals alone. A scheduled program's text says more: every
value's size, and between which instructions it lives. `live_at_peak` follows
them, with updates in place and loops that carry their buffers, and so finds
what lies there when memory is fullest.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax

from align_jax.plan.hlo import Computation, Op, Program

_RENAMES = {"bitcast", "opt-barrier", "get-tuple-element", "tuple",
            "copy-done", "all-gather-done", "collective-permute-done",
            "all-reduce-done", "async-done"}
_NOTHING = {"constant", "after-all", "partition-id", "replica-id"}
_SMALL = 2 ** 14

# {0}: (1, {}, ...): the first result is written over the second operand.
_OVER = re.compile(r"\{(\d*)\}: \((\d+), \{(\d*)\}")


@dataclasses.dataclass(frozen=True)
class Buffer:
  """Bytes on one device, and what they hold."""
  name: str
  shape: str
  bytes: float


def largest(program: Program, state: Any, batch: Any,
            count: int = 5) -> list[dict[str, Any]]:
  """The largest buffers of a step, the largest first.

  Args:
    program: of one device.
    state: its first argument; shapes with shardings.
    batch: its second.
    count: how many.
  """
  return _first(arguments(state, batch) + live_at_peak(program), count)


def foreseen(state: Any, batch: Any, moments: Mapping[str, float],
             count: int = 5) -> list[dict[str, Any]]:
  """As `largest`, without a compiler: what comes and goes is one sum.

  Args:
    state: of a step; shapes with shardings.
    batch: likewise.
    moments: bytes that each of a step's moments needs, see `memory`.
    count: how many.
  """
  fullest = max(moments, key=moments.get)
  return _first(arguments(state, batch) + [Buffer(
      f"temporary: all that lives at the fullest moment ({fullest})", "in all",
      moments[fullest])], count)


def _first(found: list[Buffer], count: int) -> list[dict[str, Any]]:
  found = sorted(found, key=lambda b: -b.bytes)
  return [dataclasses.asdict(b) for b in found[:count]]


def arguments(state: Any, batch: Any) -> list[Buffer]:
  """What lies there all the time."""
  found = []
  for tree, kind in ((state.trained, "parameter, trained"),
                     (state.frozen, "parameter, frozen"),
                     (state.opt_state, "optimizer"), (batch, "batch")):
    for path, s in jax.tree_util.tree_leaves_with_path(tree):
      dims = s.sharding.shard_shape(s.shape)
      names = [str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p))))
               for p in path]
      found.append(Buffer(
          f"{kind}: {'/'.join(names)}",
          f"{s.dtype}[{','.join(map(str, dims))}]",
          float(math.prod(dims) * s.dtype.itemsize)))
  return found


def live_at_peak(program: Program) -> list[Buffer]:
  """What comes and goes, at the moment when it is most."""
  return _Lives(program).peak(program.entry)


def _total(found: list[Buffer]) -> float:
  return sum(b.bytes for b in found)


class _Lives:
  """Lives of values, one computation after the other."""

  def __init__(self, program: Program):
    self.program = program
    self.known: dict[str, list[Buffer]] = {}
    self.bodies = {
        id(program.computations.get(name))
        for ops in program.computations.values() for op in ops.values()
        if op.opcode == "while" for name in op.called("body")}

  def peak(self, name: str) -> list[Buffer]:
    """New buffers that live when a computation needs most."""
    if name not in self.known:
      self.known[name] = []  # where a cycle would end
      self.known[name] = self._run(self.program.computations.get(name, {}))
    return self.known[name]

  def _run(self, ops: Computation) -> list[Buffer]:
    leaves = self._leaves(ops)
    last: dict[int, int] = {}
    elsewhere = self._donated(ops, leaves)
    for i, op in enumerate(ops.values()):
      if op.root:
        last |= dict.fromkeys(leaves[op.name], len(ops))
      elif op.opcode not in _RENAMES:
        for operand in op.operands:
          for leaf in leaves.get(operand, ()):
            last[leaf] = max(last.get(leaf, 0), i)
    alive: dict[int, Buffer] = {}
    best: list[Buffer] = []
    for i, op in enumerate(ops.values()):
      ends = [leaf for leaf in list(alive) if last.get(leaf, -1) <= i]
      if op.opcode not in _RENAMES | _NOTHING | {"while", "parameter"}:
        room = [alive[leaf].bytes for leaf in ends]
        taken = {leaf for operand in op.operands
                 for leaf in leaves.get(operand, ())}
        for leaf, s in zip(leaves[op.name], op.shapes):
          if (s.space or s.held < _SMALL or leaf in taken
              or leaf in elsewhere):
            continue
          if s.held in room:  # written over what ends here
            room.remove(s.held)
            ended = next(k for k in ends if alive[k].bytes == s.held)
            ends.remove(ended)
            del alive[ended]
          alive[leaf] = Buffer(f"temporary: {_said(op, ops)}",
                               f"{s.dtype}[{','.join(map(str, s.dims))}]",
                               s.held)
      now = [*alive.values(), *self._inside(op)]
      if _total(now) > _total(best):
        best = now
      for leaf in [k for k in alive if last.get(k, -1) <= i]:
        del alive[leaf]
    return best

  def _leaves(self, ops: Computation) -> dict[str, list[int]]:
    """Value -> a number for each array of it; renamed ones keep theirs."""
    leaves: dict[str, list[int]] = {}
    count = 0
    for op in ops.values():
      given = [leaves.get(n, []) for n in op.operands]
      if op.opcode == "get-tuple-element":
        index = int(re.search(r"index=(\d+)", op.attrs)[1])
        whole = given[0] if given else []
        leaves[op.name] = (whole[index:index + 1] if len(op.shapes) == 1
                           else whole)
      elif op.opcode in _RENAMES or op.opcode == "while":
        leaves[op.name] = [leaf for one in given for leaf in one]
      else:
        own = list(range(count, count + len(op.shapes)))
        count += len(op.shapes)
        for place, operand in self._in_place(op).items():
          if len(given[operand]) == 1:
            own[place] = given[operand][0]
        for place, operand, inner in _OVER.findall(op.attrs):
          source = given[int(operand)] if int(operand) < len(given) else []
          if int(inner or 0) < len(source) and int(place or 0) < len(own):
            own[int(place or 0)] = source[int(inner or 0)]
        leaves[op.name] = own
    return leaves

  def _donated(self, ops: Computation,
               leaves: dict[str, list[int]]) -> set[int]:
    """Results that are written over arguments of the program, or over what a
    loop carries."""
    root = next((op for op in ops.values() if op.root), None)
    found = leaves[root.name] if root is not None else []
    if id(ops) in self.bodies:
      return set(found)
    if ops is not self.program.computations.get(self.program.entry):
      return set()
    return {leaf for i, leaf in enumerate(found) if i in self.program.donated}

  def _in_place(self, op: Op) -> dict[int, int]:
    """Place of a result -> place of the operand that it is an update of."""
    if op.opcode == "dynamic-update-slice":
      return {0: 0}
    body = self.program.computations.get(
        (op.called("calls") or [""])[0]) if op.opcode == "fusion" else None
    if not body:
      return {}
    root = next((o for o in body.values() if o.root), None)
    results = ([body.get(n) for n in root.operands]
               if root is not None and root.opcode == "tuple" else [root])
    found = {}
    for place, result in enumerate(results):
      result = _unwrapped(result, body)
      if result is None or result.opcode != "dynamic-update-slice":
        continue
      source = _unwrapped(body.get(result.operands[0]), body)
      if source is not None and source.opcode == "parameter":
        found[place] = int(re.search(r"value=(\d+)$", source.attrs)[1])
    return found

  def _inside(self, op: Op) -> list[Buffer]:
    """What a loop's body or a branch needs beside what it is handed."""
    names = {"while": ("body",), "call": ("to_apply",), "conditional": (
        "branch_computations", "true_computation", "false_computation")}
    return max((self.peak(b) for b in op.called(*names.get(op.opcode, ()))),
               key=_total, default=[])


def _said(op: Op, ops: Computation) -> str:
  """Where a value comes from; where nothing tells, what it goes into."""
  found, seen = op, 0
  while found is not None and not found.op_name and seen < 4:
    found = next((o for o in ops.values() if found.name in o.operands), None)
    seen += 1
  return (found.op_name if found is not None else "") or op.name


def _unwrapped(op: Op | None, inside: Computation) -> Op | None:
  """What a chain of bitcasts names."""
  while op is not None and op.opcode == "bitcast":
    op = inside.get(op.operands[0])
  return op
