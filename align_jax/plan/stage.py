"""One stage of a config on a topology: predicted, compiled, measured.

What is printed and what `--json` gives is one plain dictionary a stage.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from align_jax.build import Parts, build, param_shapes
from align_jax.config import Config, StageConfig
from align_jax.parallel import rules, topology
from align_jax.parallel.layout import AXES
from align_jax.parallel.mesh import abstract_mesh, make_mesh
from align_jax.plan import cost, hlo, weights
from align_jax.plan.bounds import bounds, places_of
from align_jax.plan.buffers import foreseen, largest
from align_jax.plan.check import check
from align_jax.plan.chips import CHIPS, Chip, chip_named
from align_jax.plan.compiled import Compiled, compiled
from align_jax.plan.measure import Measured, measure
from align_jax.plan.memory import predict, uncounted
from align_jax.train.ahead import abstract_stage
from align_jax.train.select import base

StagePlan = dict[str, Any]

# What a compiler alone tells: None in a plan until one did.
FROM_COMPILER = ("used_bytes", "spare_share", "flops_compiled_over_analytic",
                 "v_sized_collectives", "compile_seconds")


@dataclasses.dataclass(frozen=True)
class Target:
  """What a plan is made for.

  Attributes:
    devices: to compile for; None where there is no compiler for them.
    chip: its facts; None for processors, which have no roofline here.
    hbm: bytes of memory a device has.
  """
  topology: str
  count: int
  devices: Sequence[jax.Device] | None
  chip: Chip | None
  hbm: float

  @property
  def platform(self) -> str:
    return "tpu" if self.tiled else self.devices[0].platform

  @property
  def tiled(self) -> bool:
    """Whether matrices lie in tiles, as in a TPU's memory."""
    return self.chip is not None and self.chip.torus > 0


def target(name: str, mesh: Any = None) -> Target:
  """The devices of a topology and their facts.

  Args:
    name: of the topology.
    mesh: of the config; of the devices at hand, where it fixes every axis,
      the first are taken, as in training.

  Raises:
    InputError: no such topology.
  """
  kind, _ = topology.parse(name)
  if kind in CHIPS:
    try:
      devices = topology.devices_of(name)
    except topology.NoCompilerError:
      devices = None
    return Target(name, topology.size(name), devices, CHIPS[kind],
                  CHIPS[kind].hbm)
  devices = topology.devices_of(name)
  fixed = [getattr(mesh, axis, -1) for axis in AXES]
  if kind == "here" and min(fixed) > 0:
    devices = devices[:math.prod(fixed)]
  chip = chip_named(devices[0].device_kind)
  if chip is not None:
    limit = (devices[0].memory_stats() or {}).get("bytes_limit", chip.hbm)
    return Target(name, len(devices), devices, chip, float(limit))
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return Target(name, len(devices), devices, None, memory / len(devices))


def plan_stage(config: Config, stage: StageConfig, where: Target,
               compiling: bool = True, kept: str = "") -> StagePlan:
  """The plan of one stage.

  Args:
    config: of the run.
    stage: of the config.
    where: what it is planned for.
    compiling: False leaves out all that needs a compiler.
    kept: a folder of compiled programs, see `compiled`.

  Raises:
    ConfigError: the mesh, the rows or the heads do not fit the devices.
    Exception: the compiler's own, unless it says that memory is short.
  """
  parts = build(config.model)
  axes = check(config, parts, where.count)
  config = config.of(stage)
  plan = predicted(config, stage, where, axes)
  if where.devices is None or not compiling:
    return plan
  mesh = make_mesh(config.mesh, where.devices)
  step, state, batch, parts = abstract_stage(config, stage, mesh)
  found = compiled(step.lower(state, batch), where.topology, kept)
  plan["compile_seconds"] = round(found.seconds, 1)
  if found.refusal:
    return plan | {"fits": False, "refusal": found.refusal}
  program = hlo.parse(found.text)
  return plan | judged_memory(found, program, where, state, batch) | (
      _measured(program, config, stage, where, mesh, parts, plan, state))


def predicted(config: Config, stage: StageConfig, where: Target,
              axes: dict[str, int]) -> StagePlan:
  """All that needs no compiler."""
  mesh = abstract_mesh(axes, where.platform)
  _, state, batch, parts = abstract_stage(config, stage, mesh)
  shapes = all_shapes(config, parts, mesh)
  costs = cost.step_cost(config, stage, parts, shapes, state.trained)
  whole = cost.total(costs)
  memory = predict(config, stage, parts, state, batch, mesh, where.tiled)
  table = rules.table(shapes, mesh)
  data, chip = config.data, where.chip
  analytic = ((whole.model + whole.recomputed + whole.masked) / where.count
              / chip.peak if chip else None)
  images = data.rows * data.images_per_row
  return {
      "stage": stage.name, "topology": where.topology,
      "chip": chip.name if chip else "processor", "devices": where.count,
      "mesh": axes,
      "fits": memory.total <= where.hbm,
      "hbm_bytes": where.hbm,
      "predicted_bytes": memory.total,
      "uncounted": uncounted(config, state),
      "predicted": dataclasses.asdict(memory),
      "largest_buffers": foreseen(state, batch, memory.moments),
      "seen_on": None,
      "parameters": sum(math.prod(s.shape) for s in shapes.values()),
      "trainable_parameters": sum(
          math.prod(s.shape) for s in state.trained.values()),
      "unsharded_share": rules.unsharded_share(shapes, mesh),
      "partition": table.splitlines(),
      "connector": cost.connector_cost(config, parts, shapes),
      "model_flops": whole.model,
      "recomputed_share": whole.recomputed / whole.model,
      "masked_share": whole.masked / whole.model,
      "flops_by_part": {k: dataclasses.asdict(c) for k, c in costs.items()},
      "tokens": data.rows * data.row_length, "images": images,
      "steps": stage.steps,
      "compute_seconds": analytic,
  } | dict.fromkeys(FROM_COMPILER)


def all_shapes(config: Config, parts: Parts, mesh: Any) -> dict[str, Any]:
  """{path: shape, dtype, sharding} of every parameter, cut stacks whole."""
  return param_shapes(parts, mesh, [p for s in config.stages for p in s.train])


def judged_memory(found: Compiled, program: hlo.Program, where: Target,
                  state: Any, batch: Any) -> StagePlan:
  """The compiler's own figures, and the buffers that are largest."""
  return {
      "fits": found.used <= where.hbm, "used_bytes": found.used,
      "peak_bytes": found.peak or found.used,
      "argument_bytes": found.arguments,
      "temporary_bytes": found.used - found.arguments,
      "spare_share": 1 - found.used / where.hbm,
      "largest_buffers": largest(program, state, batch),
      "seen_on": where.topology,
  }


def _measured(program: hlo.Program, config: Config, stage: StageConfig,
              where: Target, mesh: Mesh, parts: Parts, plan: StagePlan,
              state: Any) -> StagePlan:
  """What the program does."""
  seen = measure(program, where.count)
  shapes = all_shapes(config, parts, mesh)
  decoder = getattr(parts.model, "decoder", None)
  sizes = decoder.config if decoder is not None else None
  sorted_out = weights.moved(
      seen, shapes, state.trained, dict(mesh.shape),
      vocabulary=sizes.vocab_size if sizes else 0,
      width=sizes.width if sizes else 0,
      compute_bytes=jnp.dtype(config.model.dtype).itemsize,
      accumulate=stage.accumulate,
      backward=_backward(shapes, map(base, state.trained)))
  result = {
      "compiled_flops": seen.flops * where.count,
      "compiled_flops_by_part": {
          k: v * where.count for k, v in seen.flops_by_part.items()},
      "flops_compiled_over_analytic":
          seen.flops * where.count / plan["model_flops"],
      "traffic_bytes": seen.traffic,
      "collectives": summary(seen),
      "v_sized_collectives": len(sorted_out.vocabulary),
      "v_sized": [_line(c) for c in sorted_out.vocabulary],
      "weights_moved": sorted_out.weights,
      "weights_least": sorted_out.least,
      "weights_moved_over_least": (sorted_out.weights / sorted_out.least
                                   if sorted_out.least else None),
      "uncosted_calls": dict(seen.uncosted),
      "unknown_loops": seen.unknown_loops,
      "mfu_ceiling": None,
  }
  if where.chip is None:
    return result
  limit = bounds(seen, plan["model_flops"], where.chip,
                 places_of(list(mesh.devices.flat)))
  hosts = math.ceil(where.count / where.chip.per_host)
  return result | {
      "seconds": dataclasses.asdict(limit), "mfu_ceiling": limit.ceiling,
      "binding": limit.binding, "chip_hours":
          limit.step * plan["steps"] * where.count / 3600,
      "images_per_second_per_host": plan["images"] / limit.step / hosts,
      "hosts": hosts,
  }


def _backward(shapes: Any, trained: Any) -> set[str]:
  """Parameters through whose layer a gradient flows: from the first part
  that trains on."""
  order = ("tower", "connector", "decoder")
  parts = [p.split("/")[0] for p in trained]
  first = min((order.index(p) for p in parts if p in order), default=0)
  after = order[first:]
  return {p for p in shapes if p.split("/")[0] in after
          or p.split("/")[0] not in order}


def summary(seen: Measured) -> list[dict[str, Any]]:
  """Transfers by kind: how many, and the bytes that one device sends."""
  kinds: dict[str, dict[str, Any]] = {}
  for c in seen.collectives:
    row = kinds.setdefault(c.kind, {
        "kind": c.kind, "count": 0, "bytes": 0.0, "in_loops": 0})
    row["count"] += round(c.times)
    row["bytes"] += c.times * c.wire
    row["in_loops"] += round(c.times) if c.loops else 0
  return sorted(kinds.values(), key=lambda r: -r["bytes"])


def _line(c: Any) -> str:
  shapes = " ".join(f"{s.dtype}{list(s.dims)}" for s in c.shapes)
  return f"{c.kind} {shapes} x {c.times:g} {c.op_name}"
