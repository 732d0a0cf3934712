"""The table of what is read and written, out of the registry.

  align-jax convert supported --readme README.md
"""

from pathlib import Path
from typing import Any

from align_jax.errors import InputError
from align_jax.hub.keymaps import FAMILIES

_BEGIN, _END = "<!-- supported -->\n", "<!-- end -->"


def rows() -> list[dict[str, Any]]:
  """One a model_type, in the order of the registry's names."""
  found = []
  for name in FAMILIES.names():
    family = FAMILIES.get(name)
    parts = sorted(p for p in family.parts if family.parts[p].family.rules)
    if family.kind == "vlm":
      what = "whole model"
    elif "decoder" in family.parts:
      what = "parts of a whole"
    elif "embed_vd" in family.rules:
      what = "language model"
    else:
      what = "image and text" if "text" in family.parts else "tower"
    found.append({
        "model_type": name, "what": what, "kind": family.kind,
        "parts": parts or [what],
        "models": family.models})
  order = ["tower", "image and text", "language model", "whole model",
           "parts of a whole"]
  return sorted(found, key=lambda r: (order.index(r["what"]),
                                      r["model_type"]))


def table() -> str:
  """The table in Markdown."""
  lines = ["| `model_type` | what | such as | read as | parts to load alone |",
           "|---|---|---|---|---|"]
  for r in rows():
    parts = ", ".join(p for p in r["parts"] if p != r["what"])
    lines.append(f"| `{r['model_type']}` | {r['what']} | {r['models']} | "
                 f"`{r['kind']}` | {parts} |")
  lines.append("| GGUF | language model | Llama layout, SmolLM2 | `llama` | |")
  return "\n".join(lines)


def write_readme(path: Path) -> None:
  """Puts the table between its marks in a file.

  Raises:
    InputError: the file has no such marks.
  """
  text = path.read_text(encoding="utf-8")
  before, begin, rest = text.partition(_BEGIN)
  _, end, after = rest.partition(_END)
  if not end:
    raise InputError(f"{path} has no {_BEGIN.strip()} ... {_END}")
  path.write_text(f"{before}{begin}{table()}\n{end}{after}", encoding="utf-8")
