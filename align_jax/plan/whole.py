"""All stages of a config, and what to do about those that do not fit."""

import shlex
from collections.abc import Sequence
from typing import Any

import jax

from align_jax.config import Config
from align_jax.errors import InputError
from align_jax.parallel import topology
from align_jax.plan.advice import Advice, advise, buffers_elsewhere
from align_jax.plan.check import stage_named
from align_jax.plan.goals import Verdict, judge
from align_jax.plan.stage import Target, plan_stage, target


def plan(config: Config, where: str = "", stage: str = "",
         source: str = "", kept: str = "", overrides: Sequence[str] = (),
         ) -> tuple[dict[str, Any], dict[str, dict[str, Verdict]]]:
  """The plan of a config.

  Args:
    config: of the run.
    where: a topology; "" is the config's own.
    stage: the name of one; "" is all.
    source: how the config was named, for the advice's command.
    kept: a folder of compiled programs, see `compiled`.
    overrides: "a.b=value" each, that made the config of its source.

  Returns:
    (plain JSON, verdicts by stage and goal).

  Raises:
    InputError: no such topology, or a config that does not go with it.
  """
  name = where or config.plan.topology
  if not name:
    raise InputError(
        f"{config.name} names no topology to plan for: give --topology, or "
        "set plan.topology in the config")
  kind, _ = topology.parse(name)
  chosen = [stage_named(config, stage)] if stage else config.stages
  if kind != "here":  # nothing runs; no device of this machine is wanted
    jax.config.update("jax_platforms", "cpu")
  place = target(name, config.mesh)
  stages, verdicts = {}, {}
  for one in chosen:
    found = plan_stage(config, one, place, kept=kept)
    if not found["fits"]:
      if found["used_bytes"] is None and "refusal" in found:
        found |= buffers_elsewhere(config, one, place, kept)
      times = (found["used_bytes"] or 0) / found["predicted_bytes"]
      found["advice"] = _said(advise(config, one, place, times), place,
                              source, overrides, stage)
    stages[one.name] = found
    verdicts[one.name] = judge(found)
    found["goals"] = {
        goal: {"met": v.met, "text": v.text,
               "reason": config.plan.misses.get(goal, "")}
        for goal, v in verdicts[one.name].items()}
  return {"name": config.name, "topology": name, "devices": place.count,
          "compiled": all(s["compile_seconds"] is not None
                      for s in stages.values()),
          "fits": all(s["fits"] for s in stages.values()),
          "stages": stages}, verdicts


def _said(advice: Advice | None, place: Target, source: str,
          overrides: Sequence[str], stage: str) -> dict[str, Any] | None:
  """The advice with the command that follows it.

  Of two values for one field the last counts, so the advice's own come last.
  """
  if advice is None:
    return None
  flags = [f if f.startswith("--") else f"--config.{shlex.quote(f)}"
           for f in (*overrides, *advice.flags)]
  if stage:
    flags.insert(0, f"--stage {stage}")
  if not any(f.startswith("--topology") for f in flags):
    flags.insert(0, f"--topology {place.topology}")
  return {"why": advice.why, "predicted_share": advice.share,
          "flags": list(advice.flags),
          "command": " ".join(["align-jax plan --config",
                               shlex.quote(source) if source else "CONFIG",
                               *flags])}
