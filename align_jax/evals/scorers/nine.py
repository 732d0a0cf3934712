"""AlignVLM's average: the plain mean over its nine document sets.

arXiv 2502.01341v2, Table 1 and 2: each set's own metric in percent, all
weighing alike, whatever their sizes. The metrics are those of the sets.
"""

from collections.abc import Mapping

from align_jax.errors import InputError
from align_jax.registry import nearest

# Set -> scorers of ours that give its metric; the first is the default.
NINE = {
    "docvqa": ("anls", "anls_vlmevalkit", "anls_due"),
    "infovqa": ("anls", "anls_vlmevalkit", "anls_due"),
    "deepform": ("due_f1",),
    "klc": ("due_f1",),
    "wtq": ("denotation", "denotation_due"),
    "tabfact": ("tabfact", "tabfact_contains"),
    "chartqa": ("relaxed", "relaxed_vlmevalkit"),
    "textvqa": ("vqa_evalai", "vqa_vlmevalkit", "vqa_official"),
    "tablevqa": ("tablevqa",),
}


def average(scores: Mapping[str, float]) -> float:
  """The mean over the nine, of shares or of percents.

  Raises:
    InputError: a set is missing, or one is none of the nine.
  """
  faults = [f"no score for {name}" for name in NINE if name not in scores]
  faults += [f"{name!r} is none of the nine{nearest(name, NINE)}"
             for name in scores if name not in NINE]
  if faults:
    raise InputError("; ".join(faults))
  return sum(scores[name] for name in NINE) / len(NINE)
