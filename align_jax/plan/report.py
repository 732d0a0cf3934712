"""A plan as it is printed."""

from collections.abc import Iterator
from typing import Any

from align_jax.plan.goals import Verdict

StagePlan = dict[str, Any]


def text(plan: dict[str, Any], verdicts: dict[str, dict[str, Verdict]],
         reasons: dict[str, str]) -> str:
  """All stages of a config, for people."""
  return "\n\n".join(
      "\n".join(_stage(plan["name"], stage, verdicts[name], reasons))
      for name, stage in plan["stages"].items())


def _stage(name: str, s: StagePlan, verdicts: dict[str, Verdict],
           reasons: dict[str, str]) -> Iterator[str]:
  mesh = ", ".join(f"{a} {n}" for a, n in s["mesh"].items() if n > 1) or "none"
  yield (f"{name}, stage {s['stage']} on {s['topology']}: {s['devices']} x "
         f"{s['chip']}, mesh {mesh}")
  yield ""
  yield from (f"  {line}" for line in s["partition"])
  yield (f"  {s['parameters']:,} parameters, {s['trainable_parameters']:,} "
         f"trained, {s['unsharded_share']:.1%} unsharded")
  if c := s.get("connector"):
    yield (f"  connector {c['kind']}: {c['tokens_out']} tokens out, "
           f"{c['parameters']:,} parameters, {c['flops'] / 1e9:,.1f} GFLOP an "
           "image")
  yield ""
  yield from _memory(s, reasons)
  yield ""
  yield from _flops(s)
  if "collectives" in s:
    yield ""
    yield from _transfers(s)
  yield ""
  yield from _time(s)
  yield ""
  for goal, verdict in verdicts.items():
    state = {True: "met", False: "MISSED", None: "not judged"}[verdict.met]
    reason = reasons.get(goal, "") if verdict.met is False else ""
    yield f"  {goal}  {state:10} {verdict.text}" + (
        f"; because {reason}" if reason else "")
  if not s["fits"]:
    yield ""
    yield from _misfit(s)


def gib(count: float) -> str:
  return f"{count / 2**30:.2f} GiB"


def _memory(s: StagePlan, reasons: dict[str, str]) -> Iterator[str]:
  p = s["predicted"]
  yield "  memory of a device     predicted"
  for name in ("parameters", "optimizer", "gradients", "batch",
               "temporaries"):
    yield f"    {name:18} {gib(p[name]):>12}"
  yield f"    {'together':18} {gib(s['predicted_bytes']):>12}"
  if s["used_bytes"] is not None:
    seen = (f" (seen on {s['seen_on']})" if s["seen_on"] != s["topology"]
            else "")
    if "peak_bytes" in s:
      yield f"    {'compiled':18} {gib(s['peak_bytes']):>12}"
    yield (f"    {'with its gaps':18} {gib(s['used_bytes']):>12}{seen}; "
           f"{s['spare_share']:.0%} of {gib(s['hbm_bytes'])} to spare")
  else:
    yield f"    {'there is':18} {gib(s['hbm_bytes']):>12}"
    # The config's own reason is from when it was compiled.
    if off := reasons.get("T5") or s["uncounted"]:
      yield f"    a prediction alone, which may miss: {off}"


def _flops(s: StagePlan) -> Iterator[str]:
  yield "  TFLOP a step           model    compiled"
  compiled = s.get("compiled_flops_by_part", {})
  for part, c in s["flops_by_part"].items():
    seen = f"{compiled[part] / 1e12:12,.1f}" if part in compiled else ""
    yield f"    {part:14} {c['model'] / 1e12:13,.1f}{seen}"
  for part in compiled.keys() - s["flops_by_part"].keys():
    yield f"    {part:14} {'':13}{compiled[part] / 1e12:12,.1f}"
  total = f"{s['compiled_flops'] / 1e12:12,.1f}" if compiled else ""
  yield f"    {'together':14} {s['model_flops'] / 1e12:13,.1f}{total}"
  yield (f"    the policy declares {s['recomputed_share']:.1%} recomputed; "
         f"plain attention masks {s['masked_share']:.1%}")
  if compiled:
    yield (f"    compiled over model: "
           f"{s['flops_compiled_over_analytic']:.3f}")
  for name, count in s.get("uncosted_calls", {}).items():
    yield f"    not counted: {count} calls of {name}, which declare no cost"
  if s.get("unknown_loops"):
    yield (f"    {s['unknown_loops']} loops do not tell their turns; counted "
           "once")


def _transfers(s: StagePlan) -> Iterator[str]:
  yield "  between devices     times a step    GiB sent a device"
  for row in s["collectives"]:
    yield (f"    {row['kind']:18} {row['count']:11,} "
           f"{row['bytes'] / 2**30:16.3f}")
  if s["weights_moved_over_least"] is not None:
    yield (f"    of weights {gib(s['weights_moved'])}, "
           f"{s['weights_moved_over_least']:.2f} times the least that the "
           "layout needs")
  for line in s["v_sized"]:
    yield f"    V-sized: {line[:160]}"


def _time(s: StagePlan) -> Iterator[str]:
  yield f"  {s['tokens']:,} tokens and {s['images']:,} image slots a step"
  if "seconds" in s:
    b = s["seconds"]
    yield (f"  a step takes at least {b['step']:.3f} s: compute "
           f"{b['compute']:.3f}, memory {b['memory']:.3f}, interconnect "
           f"{b['interconnect']:.3f}; {b['binding']} binds")
    yield f"  ceiling on MFU {s['mfu_ceiling']:.1%}"
    yield (f"  {s['steps']:,} steps are at least {s['chip_hours']:,.0f} "
           f"chip-hours; each of {s['hosts']} hosts feeds up to "
           f"{s['images_per_second_per_host']:,.1f} images/s")
  elif s["compute_seconds"]:
    yield (f"  arithmetic alone takes {s['compute_seconds']:.3f} s a step "
           f"({s['steps']:,} steps)")
  if s["compile_seconds"] is not None:
    yield f"  compiled in {s['compile_seconds']:.0f} s"


def _misfit(s: StagePlan) -> Iterator[str]:
  yield f"  DOES NOT FIT on {s['topology']}"
  if "refusal" in s:
    yield f"    {s['refusal']}"
  yield f"    its largest buffers a device, {_seen(s)}:"
  for b in s["largest_buffers"]:
    yield f"      {gib(b['bytes']):>11}  {b['shape']}  {b['name']}"
  if s.get("advice"):
    yield f"    to make it fit: {s['advice']['why']}"
    yield f"      {s['advice']['command']}"
  elif "advice" in s:
    yield "    nothing that was tried makes it fit; train fewer parameters"


def _seen(s: StagePlan) -> str:
  """Where the largest buffers are known from."""
  if s["seen_on"]:
    return f"as compiled for {s['seen_on']}"
  return "predicted, since " + (
      "no chip that it can be compiled for has the memory" if "refusal" in s
      else "there is no compiler for these devices")
