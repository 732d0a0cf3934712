"""A pretrained model: what it is, its weights, its tokenizer, its processor.

  spec = read_spec("folder")                 # or "pkg:PACKAGE/FILE.gguf"
  spec.kind, spec.config                     # "llama", DecoderConfig(...)
  params, provenance = load_params(spec, shapes)
"""

import dataclasses
import fnmatch
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from align_jax.decoders.lora import is_adapter
from align_jax.errors import InputError
from align_jax.hub.fill import load_flat
from align_jax.hub.foreign_config import Fields
from align_jax.hub.keymaps import FAMILIES, Family, family_of
from align_jax.hub.locate import is_id, locate, revision
from align_jax.hub.match import faults_of, part_keys, refuse
from align_jax.hub.reader import Reader
from align_jax.hub.safetensors import SafetensorsReader
from align_jax.hub.write import foreign_tensors, write_safetensors


@dataclasses.dataclass(frozen=True)
class Spec:
  """What a checkpoint holds; its weights have not been read.

  Attributes:
    kind: the registered tower or decoder.
    config: its config, of our own class.
    path: the folder, or the GGUF file.
    family: names of its weights.
    whole: the family of the whole checkpoint that this is a part of.
    part: which part, "" for the whole.
    raw: config.json; empty for GGUF.
    added: globs over our part's parameters that the checkpoint does not have,
      and that start on their own: SAM's, from InstructBLIP's Q-Former.
  """
  kind: str
  config: Any
  path: Path
  family: Family
  whole: Family
  part: str = ""
  raw: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  added: tuple[str, ...] = ()

  @property
  def is_gguf(self) -> bool:
    return self.path.suffix == ".gguf"

  def held(self, shapes: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What of a model is read from here, by paths of the part.

    Args:
      shapes: path of the model -> whatever.
      prefix: of the part's paths.
    """
    own = {path.removeprefix(prefix): s for path, s in shapes.items()
           if path.startswith(prefix) and not is_adapter(path)}
    return {path: s for path, s in own.items()
            if not any(fnmatch.fnmatchcase(path, p) for p in self.added)}


def read_spec(weights: str | Path, part: str = "") -> Spec:
  """Says what a checkpoint holds, or a part of it.

  Args:
    weights: as `locate` takes it. A folder has a config.json in Hugging Face's
      layout.
    part: "tower", "text" or "decoder" of a checkpoint with parts; a checkpoint
      without parts is its own part.

  Raises:
    InputError: nothing there, or a model that is not implemented; all that is
      not understood is named.
  """
  path = locate(weights, texts_only=True)
  if path.suffix == ".gguf":
    from align_jax.hub.gguf import gguf_config, open_gguf
    from align_jax.hub.keymaps.llama import LLAMA_GGUF

    return Spec("llama", gguf_config(open_gguf(path)), path, LLAMA_GGUF,
                LLAMA_GGUF)
  if not (path / "config.json").is_file():
    raise InputError(f"{weights}: no config.json in {path}; weights are a "
                     "Hugging Face folder or a .gguf file")
  raw = _read_json(path / "config.json")
  model_type = raw.get("model_type", "")
  try:
    whole = family_of(raw)
  except KeyError as error:
    raise InputError(f"{path / 'config.json'}: {error.args[0]}") from error
  family, section = whole, raw
  if part and whole.parts:
    if part not in whole.parts:
      raise InputError(f"{path} is a {model_type!r} model, which has no "
                       f"{part!r} (it has: {', '.join(whole.parts)})")
    family = whole.parts[part].family
    if name := whole.parts[part].config:
      section = raw.get(name, {})
  config = family.read_config(section)
  if pixels := processor_fields(path):
    if hasattr(config, "mean"):
      config = with_processor(config, pixels, family.resamples)
    elif hasattr(getattr(config, "tower", None), "mean"):
      config = dataclasses.replace(
          config, tower=with_processor(config.tower, pixels, False))
  return Spec(family.kind, config, path, family, whole, part, raw)


def processor_fields(path: Path) -> dict[str, Any]:
  """What is said of the image processor in a folder; {} if nothing is.

  transformers 5 writes it into processor_config.json where a tokenizer lies
  beside it, and into preprocessor_config.json where it is alone.
  """
  for name, inside in (("preprocessor_config.json", ""),
                       ("processor_config.json", "image_processor")):
    if (path / name).is_file():
      fields = _read_json(path / name)
      if fields := fields.get(inside, {}) if inside else fields:
        return fields
  return {}


def _read_json(file: Path) -> dict[str, Any]:
  """A JSON object.

  Raises:
    InputError: the file does not hold one.
  """
  try:
    fields = json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise InputError(f"{file} is no readable JSON: {error}") from error
  if not isinstance(fields, dict):
    raise InputError(f"{file} holds no JSON object")
  return fields


def with_processor(tower: Any, pixels: Mapping[str, Any],
                   resamples: bool) -> Any:
  """A tower's config with what the image processor beside it decides.

  Args:
    tower: as its own config.json says it.
    pixels: of the processor, see `processor_fields`.
    resamples: positions fit another size of images, too.

  Raises:
    ForeignConfigError: pixels that come otherwise to a tower than
      `towers.pixels.normalise` brings them.
  """
  given = Fields({
      name: pixels[name] for name in ("do_rescale", "do_normalize")
      if pixels.get(name) is not None}, "image processor")
  given.expect("do_rescale", True)
  given.expect("do_normalize", True)
  scale = pixels.get("rescale_factor") or 1 / 255
  if not math.isclose(scale, 1 / 255, rel_tol=1e-6):
    given.refuse("rescale_factor", scale, (1 / 255,))
  given.finish(dict, {})
  changed = dict(mean=tuple(pixels.get("image_mean") or tower.mean),
                 std=tuple(pixels.get("image_std") or tower.std))
  cropped = pixels.get("do_center_crop", True) and pixels.get("crop_size")
  size = cropped or pixels.get("size") or {}
  side = size.get("height") if isinstance(size, Mapping) else size
  if resamples and side and side != tower.image_size:
    changed |= dict(image_size=side, learnt_size=tower.image_size)
  return dataclasses.replace(tower, **changed)


def is_checkpoint(source: str | Path) -> bool:
  """Whether this is a Hugging Face folder or id, and not a run of ours."""
  if is_id(source):
    return True
  try:
    text = (Path(source) / "config.json").read_text(encoding="utf-8")
    return "model_type" in json.loads(text)
  except (OSError, ValueError, TypeError):
    return False


def open_weights(spec: Spec) -> Reader:
  """The files of a checkpoint, open; no tensor is read.

  Raises:
    InputError: files that are missing, damaged or pickles.
  """
  if spec.is_gguf:
    from align_jax.hub.gguf import open_gguf
    return open_gguf(spec.path)
  if at := revision(spec.path):
    locate(at)  # so far the texts of the repository alone were fetched
  return SafetensorsReader(spec.path)


def load_params(
    spec: Spec, shapes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
  """Weights, straight into their shards.

  Args:
    spec: what `read_spec` gave.
    shapes: a tree of ShapeDtypeStructs with their shardings (None: the default
      device), nested or flat with "/" between names.

  Returns:
    (params, provenance): a tree like `shapes`; {path: "file:key"}.

  Raises:
    InputError: listing what is missing, unexpected or of another shape.
  """
  loaded, origins = load_parts({spec.part: spec}, {spec.part: shapes})
  return loaded[spec.part], origins[spec.part]


def load_parts(
    specs: Mapping[str, Spec], shapes: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, str]]]:
  """Several parts of a model; none is loaded unless all of them fit.

  Args:
    specs: part -> where it is from.
    shapes: part -> as `load_params` takes them.

  Returns:
    ({part: its tree}, {part: {path: "file:key"}}).

  Raises:
    InputError: listing what does not fit, part by part.
  """
  flat = {part: flatten_dict(shapes[part], sep="/") for part in specs}
  opened = check_parts(specs, flat)
  loaded, origins = {}, {}
  for part, spec in specs.items():
    reader, names = opened[part]
    loaded[part], origins[part] = load_flat(
        reader, names, spec.family, flat[part], str(spec.path))
    if set(shapes[part]) != set(flat[part]):
      loaded[part] = unflatten_dict(loaded[part], sep="/")
  return loaded, origins


def check_parts(
    specs: Mapping[str, Spec], shapes: Mapping[str, Mapping[str, Any]],
) -> dict[str, tuple[Reader, dict[str, str]]]:
  """Opens the files of a model's parts and fits every tensor; reads none.

  Args:
    specs: part -> where it is from.
    shapes: part -> {path: shape}, flat.

  Returns:
    {part: (its files, its family's keys -> the files')}.

  Raises:
    InputError: listing what does not fit, part by part.
  """
  readers: dict[Any, Reader] = {}
  opened, faults = {}, {}
  for part, spec in specs.items():
    if spec.path not in readers:
      readers[spec.path] = open_weights(spec)
    reader = readers[spec.path]
    names = part_keys(reader.keys(), spec.whole, spec.part)
    faults[part, str(spec.path)] = faults_of(
        reader, names, spec.family, shapes[part])
    opened[part] = reader, names
  refuse(faults)
  return opened


def load_tokenizer(source: Spec | str | Path) -> Any:
  """The transformers fast tokenizer of a checkpoint, chat template included.

  Args:
    source: a spec, or where a tokenizer lies (a folder or a .gguf file).

  Raises:
    InputError: there is none, or one of a kind that is not implemented.
  """
  path = source.path if isinstance(source, Spec) else locate(
      source, texts_only=True)
  if path.suffix == ".gguf":
    from align_jax.hub.gguf import gguf_tokenizer, open_gguf
    return gguf_tokenizer(open_gguf(path))
  import transformers

  if not any((path / name).is_file() for name in (
      "tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json",
      "vocab.txt")):
    raise InputError(f"no tokenizer in {path} (looked for tokenizer.json, "
                     "tokenizer.model, spiece.model, vocab.json, vocab.txt)")
  try:
    # Not asked for, code of a checkpoint would be offered to be run.
    return transformers.AutoTokenizer.from_pretrained(
        path, trust_remote_code=False)
  except ValueError as error:
    raise InputError(f"{path}: its tokenizer cannot be read, and code of a "
                     f"checkpoint is never run: {error}") from error


def load_processor(source: Spec | str | Path) -> Any:
  """The PIL image processor of a checkpoint, see `processor_fields`.

  Raises:
    InputError: there is none, or one whose PIL form transformers lacks.
  """
  path = source.path if isinstance(source, Spec) else locate(
      source, texts_only=True)
  given = processor_fields(path)
  if not given:
    raise InputError(f"no preprocessor_config.json in {path}")
  import transformers

  name = given.get("image_processor_type") or given.get(
      "feature_extractor_type", "")
  name = name.replace("FeatureExtractor", "ImageProcessor")
  name = name.removesuffix("Fast").removesuffix("Pil") + "Pil"
  found = getattr(transformers, name, None)
  if found is None:
    raise InputError(f"{path}: transformers has no {name!r}, the PIL form of "
                     "the image processor that is named there")
  return found.from_pretrained(path)


def save_hf(
    params: Mapping[str, Any],
    family: Family | str,
    config: Any,
    folder: str | Path,
    max_bytes: int = 4 << 30,
) -> None:
  """Writes a model in Hugging Face's layout: safetensors and config.json.

  Args:
    params: tree of parameters, nested or flat; written in their own dtypes.
    family: or its `model_type`, such as "llama".
    config: of the class that the family reads.
    folder: where; made if need be.
    max_bytes: of tensors in one file.

  Raises:
    InputError: parameters that the layout has no place for.
  """
  if isinstance(family, str):
    family = FAMILIES.get(family)
  folder = Path(folder)
  flat = flatten_dict(params, sep="/")
  write_safetensors(folder, foreign_tensors(family, flat), max_bytes)
  kinds = sorted({str(jax.numpy.asarray(v).dtype) if not hasattr(v, "dtype")
                  else str(v.dtype) for v in flat.values()})
  written = dict(family.write_config(config))
  if len(kinds) == 1:
    written["dtype"] = kinds[0]
  (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
