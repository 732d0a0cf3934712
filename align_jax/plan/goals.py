"""What every recipe at scale must meet, judged on its compiled program."""

import dataclasses
from typing import Any

# Least ceiling on MFU, by chip; recipes for others are not judged by it.
CEILING = {"TPU v5e": 0.55, "TPU v5p": 0.60}
SPARE = 0.10
MOVED = 1.1
FLOPS = 1.05
MEMORY = 0.05


@dataclasses.dataclass(frozen=True)
class Verdict:
  """One goal.

  Attributes:
    met: None where it cannot be judged here.
    text: the figure beside its limit.
  """
  met: bool | None
  text: str


def judge(stage: dict[str, Any]) -> dict[str, Verdict]:
  """The goals T1 to T5 for one stage's plan, as `stage.plan_stage` gives it.

    T1  fits with 10 % of memory to spare; no activation of the vocabulary's
        size moves between chips, no table moves inside a loop
    T2  the ceiling on MFU, transfers not overlapped
    T3  bytes moved for weights over the least that the layout needs
    T4  compiled FLOPs over analytic ones, less declared recomputation
    T5  memory predicted without compiling over compiled: what lives at one
        time, by both; T1 counts the gaps of the compiler's packing too
  """
  if "compiled_flops" not in stage:
    verdicts = {f"T{i}": Verdict(None, "not compiled") for i in range(1, 6)}
    if not stage["fits"]:
      verdicts["T1"] = Verdict(False, "does not fit")
    return verdicts
  verdicts = {}
  spare, moved = stage["spare_share"], stage["v_sized_collectives"]
  verdicts["T1"] = Verdict(
      stage["fits"] and spare >= SPARE and moved == 0,
      f"{spare:.0%} to spare (>= {SPARE:.0%}), {moved} V-sized moves (0)")
  limit, ceiling = CEILING.get(stage["chip"]), stage["mfu_ceiling"]
  verdicts["T2"] = (
      Verdict(None, "no goal for this chip")
      if limit is None or ceiling is None else
      Verdict(ceiling >= limit, f"{ceiling:.0%} (>= {limit:.0%})"))
  ratio = stage["weights_moved_over_least"]
  verdicts["T3"] = (Verdict(None, "no weights move") if ratio is None else
                    Verdict(ratio <= MOVED, f"{ratio:.2f} (<= {MOVED})"))
  ratio, again = (stage["flops_compiled_over_analytic"],
                  stage["recomputed_share"])
  verdicts["T4"] = Verdict(
      ratio <= FLOPS + again,
      f"{ratio:.3f} (<= {FLOPS} + {again:.3f} recomputed)")
  off = stage["predicted_bytes"] / stage["peak_bytes"] - 1
  verdicts["T5"] = Verdict(abs(off) <= MEMORY,
                           f"{off:+.1%} (within {MEMORY:.0%})")
  if not stage["chip"].startswith("TPU"):  # T2 to T5 are goals for TPUs
    verdicts |= {g: Verdict(None, v.text) for g, v in verdicts.items()
                 if g != "T1"}
  return verdicts
