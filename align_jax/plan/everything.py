"""`make plan-all`: every config at scale on the topology that it names.

  python -m align_jax.plan.everything [FOLDER ...]

One process a config, one after the other: compilers do not give back what
they held. What the compiler made is kept in runs/plans, so that a call that
was broken off goes on where it was, and one that follows a change compiles
again what the change made another program. Exits with 1 where a config does
not fit, or misses a goal without saying why.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

GOALS = ("T1", "T2", "T3", "T4", "T5")
KEPT = "runs/plans"


def specs(folder: Path) -> list[str]:
  """FILE or FILE:arg of each config below a folder, but for the mini ones."""
  found = []
  for path in sorted(folder.rglob("*.py")):
    if "mini" in path.relative_to(folder).parts or path.name.startswith("_"):
      continue
    loader = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    if hasattr(module, "get_config"):
      arguments = getattr(module, "PLANS", ("",))
      found += [f"{path}:{a}" if a else str(path) for a in arguments]
  return found


def planned(spec: str) -> dict[str, Any]:
  """The plan of one config, or {"error": text}."""
  done = subprocess.run(
      [sys.executable, "-m", "align_jax.cli.main", "plan", "--config", spec,
       "--json", "--keep", KEPT], capture_output=True, text=True,
      check=False)
  lines = done.stdout.strip().splitlines()
  if lines and lines[-1].startswith("{"):
    return json.loads(lines[-1])
  return {"error": done.stderr.strip().splitlines()[-1:] or ["no output"]}


def row(name: str, stage: dict[str, Any]) -> tuple[list[str], bool]:
  """The cells of one stage, and whether all is well."""
  gib = lambda n: f"{n / 2**30:.1f}" if n else ""
  share = lambda n: f"{n:.0%}" if n is not None else ""
  goals = stage["goals"]
  mark = {True: "met", False: "MISSED", None: "-"}
  cells = [name, stage["stage"], stage["topology"],
           f"{stage['parameters'] / 1e9:.2f}",
           gib(stage["used_bytes"] or stage["predicted_bytes"]),
           share(stage["spare_share"]), share(stage.get("mfu_ceiling")),
           *("said" if goals[g]["met"] is False and goals[g]["reason"]
             else mark[goals[g]["met"]] for g in GOALS)]
  well = stage["fits"] and all(
      goals[g]["met"] is not False or goals[g]["reason"] for g in GOALS)
  return cells, well


def table(rows: list[list[str]]) -> str:
  head = ["config", "stage", "topology", "params B", "GiB", "spare", "MFU <",
          *GOALS]
  widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
  return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths)).rstrip()
                   for r in [head, *rows])


def main(folders: list[str]) -> int:
  rows, notes, well = [], [], True
  for folder in map(Path, folders or ["configs"]):
    for spec in specs(folder):
      plan = planned(spec)
      if "error" in plan:
        rows.append([spec, *[""] * 6, *["-"] * len(GOALS)])
        notes.append(f"{spec}: {' '.join(plan['error'])}")
        well = False
        continue
      for stage in plan["stages"].values():
        cells, fine = row(plan["name"], stage)
        rows.append(cells)
        well = well and fine
        notes += [f"{plan['name']} {stage['stage']} {g}: {v['text']}"
                  + (f"; {v['reason']}" if v["reason"] else "")
                  for g, v in stage["goals"].items() if v["met"] is False]
      print(table(rows[-len(plan["stages"]):]), file=sys.stderr, flush=True)
  print(table(rows))
  print("\n".join(notes))
  return 0 if well else 1


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
