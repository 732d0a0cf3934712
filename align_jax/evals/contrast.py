"""What a finished study may say about its primary contrast.

The rules are fixed before anything is run:
  - a study counts only if some arm stands at least 15 points above the
    control (what is known without the image) and none is above 97 %;
  - it may say that a figure has to stand at three times its chance, as a
    teacher's labels, or nothing can be tested;
  - exploratory cells have no part in any of this;
  - arms are paired by seed, and the difference has a t-interval over seeds;
  - an interval that holds zero reads "no difference seen", with the smallest
    difference that would have been seen.
"""

import math
from typing import Any

import numpy as np

from align_jax.evals.intervals import bootstrap, paired_t

ABOVE_CONTROL = 0.15
CEILING = 0.97
TIMES_CHANCE = 3.0


def figure(cell: dict[str, Any], key: str) -> Any:
  """A figure of a cell by path, such as "noise/0.5"; None if it is absent."""
  node: Any = cell["figures"]
  for part in key.split("/"):
    if not isinstance(node, dict) or part not in node:
      return None
    node = node[part]
  return node


def arms_of(results: dict[str, Any],
            exploratory: bool = False) -> dict[str, list[dict[str, Any]]]:
  """Finished cells of one kind by arm: the study's order, seeds ascending."""
  arms: dict[str, list[dict[str, Any]]] = {}
  for cell in results["cells"].values():
    if bool(cell.get("exploratory")) == exploratory:
      arms.setdefault(cell["arm"], []).append(cell)
  return {arm: sorted(cells, key=lambda c: c["seed"])
          for arm, cells in arms.items()}


def contrast(results: dict[str, Any]) -> dict[str, Any]:
  """The primary contrast of a results file, and what may be said of it.

  Args:
    results: as `evals/study.py` writes them.

  Returns:
    `verdict` (a sentence), `counts` (whether the study's rules are met), and
    where they can be computed `difference`, `t95`, `detectable`,
    `images95`, `seeds`.
  """
  first, second = results["primary"]
  metric, arms = results["metric"], arms_of(results)
  by_seed = [{c["seed"]: c for c in arms.get(arm, [])}
             for arm in (first, second)]
  seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
  missing = [name for name in results["planned"]
             if name not in results["cells"]
             and name not in results.get("exploratory", ())]
  if not seeds:
    return {"counts": False, "seeds": [], "verdict":
            f"unfinished: no seed has both {first} and {second}"}

  pairs = [tuple(by_seed[i][s] for i in (0, 1)) for s in seeds]
  test = paired_t([figure(a, metric) - figure(b, metric) for a, b in pairs])
  images = _over_images(pairs)
  out: dict[str, Any] = {
      "counts": True, "seeds": seeds, "difference": test.mean,
      "t95": None if test.n < 2 else [test.low, test.high],
      "detectable": None if test.n < 2 else test.detectable,
      "images95": images}
  if missing:
    out["counts"] = False
    out["verdict"] = f"unfinished: {', '.join(missing)} not run"
    return out
  means = {arm: float(np.mean([figure(c, metric) for c in cells]))
           for arm, cells in arms.items()}
  controls = [v for cells in arms.values() for c in cells
              if (v := figure(c, results["control"])) is not None]
  reasons = []
  if not controls or max(means.values()) < max(controls) + ABOVE_CONTROL:
    reasons.append(
        "no arm stands 15 points above what is known without the image")
  if named := results.get("testable"):
    reached, chance = (float(np.mean([figure(c, key) for c in arms[first]]))
                       for key in named)
    if reached < TIMES_CHANCE * chance:
      reasons.append(
          f"{named[0].rpartition('/')[2].replace('_', ' ')} is "
          f"{100 * reached:.1f} %, below three times chance "
          f"({100 * chance:.1f} %), so the claim cannot be tested with it")
  reasons += [f"{arm} is above 97 %, too near the ceiling to compare"
              for arm, mean in means.items() if mean > CEILING]
  if reasons:
    out["counts"] = False
    out["verdict"] = "inconclusive: " + "; ".join(reasons)
    return out
  out["verdict"] = _sentence(first, second, test, images)
  return out


def _over_images(pairs: list[tuple[dict, dict]]) -> list[float] | None:
  """Interval of the difference, redrawing images; seeds are averaged."""
  if any("by_image" not in c for pair in pairs for c in pair):
    return None
  if any(c["by_image"]["image"] != pairs[0][0]["by_image"]["image"]
         or c["by_image"]["n"] != pairs[0][0]["by_image"]["n"]
         for pair in pairs for c in pair):
    return None
  n = np.asarray(pairs[0][0]["by_image"]["n"], np.float64)
  gap = np.mean([np.asarray(a["by_image"]["right"], np.float64)
                 - np.asarray(b["by_image"]["right"]) for a, b in pairs],
                axis=0)
  return list(bootstrap({"gap": gap, "n": n}, np.arange(len(n)),
                        lambda means: means["gap"] / means["n"]))


def _sentence(first: str, second: str, test: Any,
              images: list[float] | None) -> str:
  points = lambda x: f"{100 * x:.1f}"
  between = lambda low, high: f"[{points(low)}, {points(high)}]"
  over_images = (f"; redrawing images {between(*images)}" if images else "")
  if math.isnan(test.low):
    return (f"one seed: {first} less {second} is {points(test.mean)} points"
            f"{over_images}; how much seeds differ is unknown")
  spread = (f"{points(test.mean)} points, t-interval over {test.n} seeds "
            f"{between(test.low, test.high)}{over_images}")
  if test.low <= 0 <= test.high:
    return (f"no difference seen between {first} and {second}: {spread}; a "
            f"difference of {points(test.detectable)} points would have been "
            "seen four times in five")
  better, worse = (first, second) if test.mean > 0 else (second, first)
  return f"{better} is better than {worse}: {first} less {second} is {spread}"
