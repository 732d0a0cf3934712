"""An optimised program's text, read back: what runs, how often, in what loop.

`cost_analysis()` counts the body of a loop once. Here every instruction is
met with the turns of the loops that it sits in.

  program = parse(compiled.as_text())
  for visit in walk(program):
    visit.op.opcode, visit.times, visit.loops
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2,
          "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4,
          "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_LINE = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")


@dataclasses.dataclass(frozen=True)
class Shape:
  """One array.

  Attributes:
    space: of memory; 0 the device's main one, on TPUs 1 is on the chip and 5
      the host's.
    filled: numbers that it takes room for, with what fills up its tiles.
  """
  dtype: str
  dims: tuple[int, ...]
  space: int = 0
  filled: int = 0

  @property
  def size(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    return self.size * self._width

  @property
  def held(self) -> float:
    """Bytes of memory that it takes up."""
    return max(self.filled, self.size) * self._width

  @property
  def _width(self) -> float:
    return _BYTES.get(self.dtype, 1 if self.dtype.startswith("f8") else 0)


@dataclasses.dataclass(frozen=True)
class Op:
  """An instruction.

  Attributes:
    shapes: of its result; several for a tuple.
    operands: names, of the same computation.
    attrs: the text after its operands.
    root: whether it is its computation's result.
  """
  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  attrs: str
  root: bool = False

  @functools.cached_property
  def op_name(self) -> str:
    """Where in the Python program it comes from."""
    found = re.search(r'op_name="([^"]*)"', self.attrs)
    return found[1] if found else ""

  def called(self, *attributes: str) -> list[str]:
    """Names of computations in these attributes."""
    names = []
    for attribute in attributes:
      found = re.search(rf"\b{attribute}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))",
                        self.attrs)
      if found:
        names += [n.strip().lstrip("%") for n in
                  (found[1] or found[2]).split(",")]
    return names


Computation = dict[str, Op]


@dataclasses.dataclass(frozen=True)
class Program:
  """A module.

  Attributes:
    computations: by name.
    entry: the name of that which runs.
    donated: places, in the entry's result, of arrays that are written over
      arguments.
  """
  computations: dict[str, Computation]
  entry: str
  donated: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class Visit:
  """An instruction as it runs.

  Attributes:
    op: the instruction.
    inside: its computation.
    times: how often it runs in one call of the program.
    loops: turns of the loops around it, outermost first.
    fused: whether it is inside a fusion, and so touches no main memory.
  """
  op: Op
  inside: Computation
  times: float
  loops: tuple[int, ...]
  fused: bool


def parse(text: str) -> Program:
  """The computations of an HLO module's text.

  Raises:
    ValueError: there is no entry computation in it.
  """
  computations: dict[str, Computation] = {}
  entry, current = "", None
  for line in _whole_lines(text):
    if current is None:
      head = _HEAD.match(line)
      if head and not line.startswith("HloModule"):
        current = computations.setdefault(head[2], {})
        entry = head[2] if head[1] else entry
    elif line.startswith("}"):
      current = None
    elif (op := _op(line)) is not None:
      current[op.name] = op
  if not entry:
    raise ValueError("no entry computation: this is no HLO module's text")
  header = text[:text.find("\n\n")]
  return Program(computations, entry, frozenset(
      int(place or 0) for place in re.findall(r"\{(\d*)\}: \(\d+", header)))


def _whole_lines(text: str) -> list[str]:
  """Lines of the text; a kernel's metadata is printed over three of them."""
  lines: list[str] = []
  for line in text.splitlines():
    if lines and line.startswith(('"', "}}")):
      lines[-1] += line
    else:
      lines.append(line)
  return lines


def _op(line: str) -> Op | None:
  start = _LINE.match(line)
  if not start:
    return None
  rest = line[start.end():]
  end = _balanced(rest) if rest.startswith("(") else rest.index(" ")
  opcode = _OPCODE.match(rest, end)
  if not opcode:
    return None
  shapes = tuple(_shape(*m.groups()) for m in _ARRAY.finditer(rest[:end]))
  stop = opcode.end() - 1 + _balanced(rest[opcode.end() - 1:])
  inner = rest[opcode.end():stop - 1]
  return Op(start[2], opcode[1], shapes,
            tuple(re.findall(r"%([\w.\-]+)", inner)), rest[stop:] + (
                f" value={inner}" if opcode[1] in ("constant", "parameter")
                else ""), bool(start[1]))


def _balanced(text: str) -> int:
  """The place after the bracket that closes the first one."""
  depth = 0
  for match in re.finditer(r"[()]", text):
    depth += 1 if match[0] == "(" else -1
    if depth == 0:
      return match.end()
  return len(text)


def _shape(dtype: str, dims: str, layout: str | None) -> Shape:
  space = re.search(r"S\((\d+)\)", layout or "")
  sizes = tuple(map(int, filter(None, dims.split(","))))
  return Shape(dtype, sizes, int(space[1]) if space else 0,
               _filled(sizes, layout or ""))


def _filled(sizes: tuple[int, ...], layout: str) -> int:
  """Numbers in an array whose fastest axes are cut into tiles."""
  order, _, tiles = layout.partition(":")
  tile = re.match(r"T\(([\d,]+)\)", tiles)
  if not tile or not order:
    return 0
  filled = list(sizes)
  for axis, width in zip(map(int, order.split(",")),
                         reversed([int(n) for n in tile[1].split(",")])):
    filled[axis] = -(-filled[axis] // width) * width
  return math.prod(filled)


def walk(program: Program) -> Iterator[Visit]:
  """Every instruction that runs, callers before what they call.

  Of a conditional the branch with more instructions is taken: in a step, a
  batch that has images. The scalar functions of reductions are left out.
  """
  stack = [(program.entry, 1.0, (), False)]
  while stack:
    name, times, loops, fused = stack.pop()
    inside = program.computations.get(name, {})
    for op in inside.values():
      yield Visit(op, inside, times, loops, fused)
      if op.opcode == "while":
        turns = trip_count(program, op, inside)
        for body in op.called("body"):
          stack.append((body, times * (turns or 1),
                        (*loops, turns or 0), fused))
      elif op.opcode == "conditional":
        branches = op.called("branch_computations", "true_computation",
                             "false_computation")
        if branches:
          stack.append((max(branches, key=lambda b: _reach(program, b)),
                        times, loops, fused))
      elif op.opcode in ("fusion", "call", "custom-call") or (
          op.opcode.endswith("-start")):
        for called in op.called("calls", "to_apply", "called_computations"):
          if op.opcode.endswith("-start") and op.opcode != "async-start":
            continue  # the function of a reduction
          stack.append((called, times, loops,
                        fused or op.opcode in ("fusion", "custom-call")))


def _reach(program: Program, name: str) -> int:
  """Instructions in a computation and in all that it calls."""
  seen, todo, count = set(), [name], 0
  while todo:
    name = todo.pop()
    if name in seen or name not in program.computations:
      continue
    seen.add(name)
    ops = program.computations[name]
    count += len(ops)
    for op in ops.values():
      todo += op.called("calls", "body", "to_apply", "branch_computations",
                        "true_computation", "false_computation")
  return count


def trip_count(program: Program, op: Op,
               inside: Computation) -> int | None:
  """Turns of a while loop; None where the program does not tell.

  As the compiler noted it, or from a condition that compares a counter with a
  constant. The counter starts at a constant; a loop that was unrolled grows
  it by more than one.
  """
  noted = re.search(r'known_trip_count\\?":\{\\?"n\\?":\\?"(\d+)', op.attrs)
  if noted:
    return int(noted[1])
  condition = program.computations.get((op.called("condition") or [""])[0], {})
  root = next((o for o in condition.values() if o.root), None)
  if root is not None and root.opcode == "fusion":
    inner = program.computations.get((root.called("calls") or [""])[0], {})
    inner_root = next((o for o in inner.values() if o.root), None)
    limit = next((_constant(condition.get(n)) for n in root.operands
                  if _constant(condition.get(n)) is not None), None)
    compare = inner_root
  else:
    compare = root
    limit = next((_constant(condition.get(n)) for n in
                  (root.operands if root else ())
                  if _constant(condition.get(n)) is not None), None)
  if compare is None or compare.opcode != "compare" or limit is None:
    return None
  index = _counter(condition, root)
  start = _start(op, index, inside)
  if start is None:
    return None
  turns = limit - start
  if "direction=LE" in compare.attrs:
    turns += 1
  elif "direction=LT" not in compare.attrs:
    return None
  return max(-(-turns // _step(program, op, index)), 0)


def _constant(op: Op | None) -> int | None:
  if op is None or op.opcode != "constant":
    return None
  value = re.search(r"value=(-?\d+)$", op.attrs)
  return int(value[1]) if value else None


def _counter(condition: Computation, root: Op) -> int | None:
  """The counter's place in the tuple that a loop carries."""
  for name in root.operands:
    element = condition.get(name)
    if element is not None and element.opcode == "get-tuple-element":
      return _index(element)
  return None


def _index(element: Op) -> int:
  return int(re.search(r"index=(\d+)", element.attrs)[1])


def _start(op: Op, index: int | None, inside: Computation) -> int | None:
  """The counter's first value, through the loop's initial tuple."""
  initial = inside.get(op.operands[0]) if op.operands else None
  if index is None or initial is None or initial.opcode != "tuple":
    return None
  first = inside.get(initial.operands[index])
  while first is not None and first.opcode in ("copy", "bitcast"):
    first = inside.get(first.operands[0])
  return _constant(first)


def _step(program: Program, op: Op, index: int) -> int:
  """By how much a turn grows the counter; 1 where that is not seen."""
  body = program.computations.get((op.called("body") or [""])[0], {})
  root = next((o for o in body.values() if o.root), None)
  if root is None or root.opcode != "tuple":
    return 1
  grown, inside = body.get(root.operands[index]), body
  while grown is not None and grown.opcode in ("copy", "bitcast"):
    grown = inside.get(grown.operands[0])
  if grown is not None and grown.opcode == "fusion":
    given = [_constant(inside.get(n)) for n in grown.operands]
    inside = program.computations.get((grown.called("calls") or [""])[0], {})
    grown = next((o for o in inside.values() if o.root), None)
    steps = [c for c in given if c]
    if steps and grown is not None and grown.opcode == "add":
      return steps[0]
  if grown is None or grown.opcode != "add":
    return 1
  steps = [c for n in grown.operands if (c := _constant(inside.get(n)))]
  return steps[0] if steps else 1
