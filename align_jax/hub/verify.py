"""Whether files of weights are whole, fit, and are what they were."""

import json
from pathlib import Path
from typing import Any

from align_jax.errors import InputError
from align_jax.hub import hashes
from align_jax.hub.locate import hub_hash, locate, revision
from align_jax.hub.pretrained import check_parts, is_checkpoint, read_spec
from align_jax.hub.shapes import part_shapes


def verify(path: str | Path) -> dict[str, Any]:
  """Verifies a folder, an id of the Hub, a GGUF file, or a run.

  Returns:
    kind, path, revision, files (name -> SHA-256) and said, a line for people.

  Raises:
    InputError: files that are damaged, tensors that do not fit, or a file
      whose hash is not the one it should have; all of them.
  """
  at = Path(path)
  if (at / "manifest.json").is_file() and not is_checkpoint(at):
    return _verify_run(at)
  spec = read_spec(path)
  specs, shapes = part_shapes(path, spec)
  check_parts(specs, shapes)
  folder = locate(path)
  if folder.is_file():
    files = {folder.name: hashes.computed(folder)}
    return _said("file", folder, files)
  weights = sorted(folder.glob("*.safetensors"))
  if not revision(folder):
    return _said("folder", folder, hashes.record(folder, weights))
  found = {file.name: hashes.computed(file) for file in weights}
  wrong = [f"{file.name}: the Hub has {hub_hash(file)}, the file "
           f"{found[file.name]}" for file in weights
           if hub_hash(file) not in ("", found[file.name])]
  if wrong:
    raise InputError(f"{folder} is not what the Hub has; fetch it again:\n  "
                     + "\n  ".join(wrong))
  return _said("hub", folder, found)


def _verify_run(run: Path) -> dict[str, Any]:
  about = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
  faults, found = [], {}
  for file, digest in about.get("files", {}).items():
    if not Path(file).is_file():
      faults.append(f"{file} is not there")
      continue
    found[file] = hashes.computed(file)
    if found[file] != digest:
      faults.append(f"{file} has changed: {digest} when the run began, "
                    f"{found[file]} now")
  if faults:
    raise InputError(f"the weights that {run} began with are not what they "
                     "were:\n  " + "\n  ".join(faults))
  return _said("run", run, found)


def _said(kind: str, path: Path, files: dict[str, str]) -> dict[str, Any]:
  at = revision(path)
  lines = [f"{digest}  {name}" for name, digest in files.items()]
  return {"kind": kind, "path": str(path), "revision": at, "files": files,
          "said": "\n".join([*lines, f"{at or path}: {len(files)} file(s), "
                             "whole, and everything in them has its place"])}
