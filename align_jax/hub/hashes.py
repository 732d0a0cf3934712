"""SHA-256 of files of weights, without reading them where it is known.

The Hub's cache calls a file by its hash; a folder has `sha256.json` where
`align-jax convert verify` has read it, which holds for as long as a file has
the size and the time it had then. Anything else is read.
"""

import hashlib
import json
from pathlib import Path

from align_jax.hub.locate import hub_hash

LISTED = "sha256.json"


def sha256(file: str | Path) -> str:
  """A file's hash, known or computed."""
  return hub_hash(file) or _listed(Path(file)) or computed(file)


def computed(file: str | Path) -> str:
  """A file's hash, from its bytes."""
  with open(file, "rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def record(folder: Path, files: list[Path]) -> dict[str, str]:
  """Reads files of a folder, writes their hashes there and gives them."""
  found = {file.name: {"sha256": computed(file), **_state(file)}
           for file in sorted(files)}
  part = folder / f"{LISTED}.part"
  part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
  part.replace(folder / LISTED)
  return {name: entry["sha256"] for name, entry in found.items()}


def _state(file: Path) -> dict[str, int]:
  about = file.stat()
  return {"size": about.st_size, "mtime_ns": about.st_mtime_ns}


def _listed(file: Path) -> str:
  try:
    known = json.loads((file.parent / LISTED).read_text(encoding="utf-8"))
    entry = known[file.name]
    return entry["sha256"] if _state(file).items() <= entry.items() else ""
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return ""
