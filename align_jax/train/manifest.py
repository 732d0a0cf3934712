"""What a run was made of: WORKDIR/config.json and WORKDIR/manifest.json."""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from align_jax.config import Config, differences, plain
from align_jax.errors import InputError
from align_jax.hub.hashes import sha256
from align_jax.hub.locate import pinned, revision, unpinned
from align_jax.train.select import base, cut
from align_jax.typed import with_defaults

PACKAGES = ("align-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint",
            "grain", "numpy", "transformers", "tensorflow-datasets",
            "safetensors", "libtpu")

# What may change from one start of a run to the next: none of it decides
# what is learned.
MAY_DIFFER = ("mesh", "eval", "plan", "log_every", "save_every", "keep",
              "data.workers")


# What may be another at each start of a run; the manifest's own are those of
# the first start, `starts` lists all.
OF_A_START = ("command", "commit", "python", "versions", "device", "devices",
              "processes")


def check_same_run(workdir: Path, config: Config) -> None:
  """Refuses to go on with a run that another config began.

  A field that the run's config could not have, being younger than the run,
  stood at its default.

  Raises:
    InputError: lists the fields that differ.
  """
  path = workdir / "config.json"
  if not path.is_file():
    return
  saved = read_json(path)
  found = [d for d in differences(with_defaults(saved), plain(config))
           if not d.replace(":", ".").startswith(
               tuple(f"{f}." for f in MAY_DIFFER))]
  if found:
    raise InputError(
        f"{workdir} holds a run of another config; go on with that one or "
        "choose another --workdir. They differ in\n"
        + "\n".join(f"  {d}" for d in found))


def pin(config: Config, workdir: Path) -> Config:
  """The config with each model of the Hub at one commit.

  At the run's first start that is the commit it has now; a run that goes on
  keeps its own, whatever the Hub has since.

  Raises:
    InputError: there is no such model.
  """
  path = workdir / "config.json"
  saved = read_json(path).get("model", {}) if path.is_file() else {}
  parts = {}
  for name in ("tower", "connector", "decoder", "text"):
    part = getattr(config.model, name)
    changed = {}
    for field in ("weights", "tokenizer"):
      if given := getattr(part, field, ""):
        old = saved.get(name, {}).get(field) or ""
        changed[field] = old if unpinned(old) == given else pinned(given)
    parts[name] = dataclasses.replace(part, **changed)
  return dataclasses.replace(
      config, model=dataclasses.replace(config.model, **parts))


def write_json(path: Path, value: Any) -> None:
  """Writes a file that is whole or not there."""
  part = path.with_name(path.name + ".part")
  part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
  part.replace(path)


def read_json(path: Path) -> Any:
  return json.loads(path.read_text(encoding="utf-8"))


def describe(config: Config, params: Mapping[str, jax.Array],
             trained: Iterable[str], provenance: Mapping[str, str],
             files: Mapping[str, str]) -> dict[str, Any]:
  """The manifest of a run that starts.

  Args:
    config: the run's.
    params: all parameters, flat.
    trained: keys that some stage trains; of a cut stack only the cut counts.
    provenance: path -> where it came from.
    files: weights file -> its SHA-256.
  """
  devices = jax.devices()
  return {
      "name": config.name,
      "command": sys.argv,
      "commit": commit(),
      "python": platform.python_version(),
      "versions": versions(),
      "device": devices[0].device_kind,
      "devices": len(devices),
      "processes": jax.process_count(),
      "seed": config.seed,
      "parameters": sum(x.size for x in params.values()),
      "trained_parameters": trained_size(params, trained),
      "stages": [{"name": s.name, "steps": s.steps} for s in config.stages],
      "steps": 0,
      "seconds": 0.0,
      "files": dict(files),
      # Of the Hub: file -> org/name@commit.
      "revisions": {f: revision(f) for f in files if revision(f)},
      "provenance": dict(provenance),
  }


def trained_size(params: Mapping[str, jax.Array],
                 keys: Iterable[str]) -> int:
  """Parameters that some key covers; those of several stages count once."""
  covered: dict[str, set[int]] = {}
  for key in keys:
    rows = range(params[base(key)].shape[0] if params[base(key)].ndim else 1)
    covered.setdefault(base(key), set()).update(rows[cut(key) or slice(None)])
  return sum(params[path].size * len(rows) // (params[path].shape or (1,))[0]
             for path, rows in covered.items())


def with_start(saved: Mapping[str, Any],
               about: Mapping[str, Any]) -> dict[str, Any]:
  """The manifest of a run at one more start.

  Args:
    saved: the manifest so far; empty at the first start.
    about: what `describe` says of this start.
  """
  start = lambda of: {k: of[k] for k in OF_A_START}
  earlier = saved.get("starts", [start(saved)]) if saved else []
  return {**about, **saved, "starts": [*earlier, start(about)]}


def versions() -> dict[str, str]:
  """Of the packages a result may depend on, as far as installed."""
  found = {}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def commit() -> str:
  """The checkout's commit, "-dirty" where files differ; "" without git."""
  here = Path(__file__).resolve().parent

  def git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(here), *words], check=True,
                          capture_output=True, text=True).stdout.strip()

  try:
    # An installed package may lie inside some other project's checkout.
    if not git("ls-files", Path(__file__).name):
      return ""
    dirty = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
  except (OSError, subprocess.CalledProcessError):
    return ""


def weights_files(origin: str) -> list[str]:
  """The files of a provenance "FILE:KEY; FILE:KEY"; [] for any other."""
  files = [part.rpartition(":")[0] for part in origin.split("; ")]
  return files if all(f and Path(f).is_file() for f in files) else []


def must_keep(path: str, origins: Mapping[str, str],
              earlier: Collection[str]) -> bool:
  """Whether a frozen parameter has to be in the run's own files.

  Not if it is wholly from weights files, whose hashes the manifest holds,
  and no `earlier` stage trained it: then it is loaded from there again.
  """
  return path in earlier or not weights_files(origins.get(path, ""))


def hash_files(provenance: Mapping[str, str]) -> dict[str, str]:
  """SHA-256 of every weights file that parameters came from.

  The Hub's own for a file of its cache; see `hub/hashes.py` for the rest.
  """
  return {file: sha256(file) for file in sorted({
      file for origin in provenance.values()
      for file in weights_files(origin)})}


def check_files(saved: Mapping[str, str], now: Mapping[str, str]) -> None:
  """Refuses weights files that changed since the run began.

  Raises:
    InputError: frozen parameters could not be loaded as they were.
  """
  changed = sorted(set(saved.values()) - set(now.values()))
  if changed:
    names = [f for f, digest in saved.items() if digest in changed]
    raise InputError("weights changed since the run began, so that its frozen "
                     f"parameters are lost: {', '.join(names)}")
