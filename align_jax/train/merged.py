"""A run's parameters where they lie, for those who write them elsewhere.

What a stage trained is in the run's checkpoints; what stayed frozen is in the
files it came from, whose hashes the manifest holds. Frozen layers are read
one at a time, when they are asked for, so that a model whose connector alone
was trained is never in memory.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from align_jax.build import Parts, build, param_shapes
from align_jax.config import Config, plain
from align_jax.decoders.lora import TARGETS, adapters_of
from align_jax.errors import InputError
from align_jax.hub.fill import fill
from align_jax.hub.match import Place, expand, places
from align_jax.hub.pretrained import Spec, check_parts
from align_jax.hub.reader import Reader
from align_jax.parallel.layout import Layout
from align_jax.train import manifest
from align_jax.train.checkpoint import Checkpoints, save_arrays
from align_jax.train.restore import fitting_mesh, run_config
from align_jax.train.select import base, cut, split, trainables


@dataclasses.dataclass(frozen=True)
class _Source:
  """An open checkpoint of others, and where in it a part's tensors are."""
  spec: Spec
  reader: Reader
  names: Mapping[str, str]
  placed: Mapping[str, Place]


@dataclasses.dataclass(frozen=True)
class Merged:
  """A model's parameters, layer by layer.

  Attributes:
    config: of the run.
    parts: modules, tokenizer, processor; nothing of them is loaded.
    shapes: path -> shape, dtype and sharding.
    held: path, or cut of a stack -> array: what no file of others holds.
    sources: part -> the checkpoint it came from.
    step: of the run; 0 of a checkpoint of others.
    about: the run's manifest; {} of a checkpoint of others.
  """
  config: Config
  parts: Parts
  shapes: Mapping[str, jax.ShapeDtypeStruct]
  held: Mapping[str, jax.Array]
  sources: Mapping[str, _Source]
  step: int = 0
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def _cuts(self) -> dict[str, tuple[str, slice]]:
    """Stack -> (the key of its trained cut, the layers)."""
    return {base(key): (key, cut(key)) for key in self.held if cut(key)}

  def touched(self, path: str, layer: int) -> bool:
    """Whether the run, and not a file of others, has this layer."""
    return (path in self.held or self._cut_of(path, layer) is not None
            or self._adapters(path) is not None)

  def _adapters(self, path: str) -> tuple[str, str] | None:
    """The paths of a weight's LoRA adapters, if it has them."""
    above, _, name = path.rpartition("/")
    if name.count("_") != 1 or name.split("_")[0] not in TARGETS:
      return None
    first, second = (f"{above}/{n}" for n in adapters_of(name))
    return (first, second) if first in self.shapes else None

  def _cut_of(self, path: str, layer: int) -> tuple[str, int] | None:
    """The trained cut that has this layer, and its place there."""
    key, layers = self._cuts.get(path, ("", slice(0, 0)))
    inside = layers.start <= layer < layers.stop
    return (key, layer - layers.start) if inside else None

  def value(self, path: str, layer: int) -> np.ndarray:
    """A layer of a stack (or, of anything else, all of it), our layout.

    LoRA adapters are added in, in f32; the weight keeps its dtype.
    """
    weight = self._value(path, layer)
    if (beside := self._adapters(path)) is None:
      return weight
    a, b = (self._value(p, layer).astype(np.float32) for p in beside)
    rank = a.shape[-1]
    added = (a.reshape(-1, rank) @ b.reshape(rank, -1)).reshape(weight.shape)
    scale = self.parts.model.decoder.lora.scale
    return (weight.astype(np.float32) + scale * added).astype(weight.dtype)

  def _value(self, path: str, layer: int) -> np.ndarray:
    """The parameter itself."""
    stacked = "layers" in path.split("/")[:-1]
    if found := self._cut_of(path, layer):
      key, at = found
      return np.asarray(self.held[key][at])
    if path in self.held:
      array = self.held[path]
      return np.asarray(array[layer] if stacked else array)
    part, source = self._source(path)
    place = source.placed[path.removeprefix(part)]
    shape = self.shapes[path].shape[stacked:]
    key = self.foreign(path, layer)[1]
    read = lambda index: source.reader.read(key, tuple(
        slice(c.start + o, c.stop + o) for c, o in zip(index, place.origin)))
    return place.transform.read(
        read, shape, tuple(slice(0, n) for n in shape)).astype(
            self.shapes[path].dtype)

  def foreign(self, path: str, layer: int) -> tuple[Reader, str]:
    """The open file that holds an untouched layer, and its key there."""
    part, source = self._source(path)
    key = source.placed[path.removeprefix(part)].key
    count = self.shapes[path].shape[0] if "{n}" in key else 0
    name = expand(key, count)[layer if "{n}" in key else 0]
    return source.reader, source.names[name]

  def spec(self, part: str) -> Spec | None:
    """What a part came from; None if it was initialised."""
    return self.sources[part].spec if part in self.sources else None

  def _source(self, path: str) -> tuple[str, _Source]:
    part = path.split("/")[0]
    return (f"{part}/", self.sources[part]) if part in self.sources else (
        "", self.sources[""])


def of_run(workdir: str | Path) -> Merged:
  """The parameters of a finished run.

  Raises:
    InputError: no run, one that is not finished, or weights that changed
      since it began.
  """
  workdir = Path(workdir).absolute()
  config = run_config(workdir)
  checkpoints = Checkpoints(workdir, read_only=True)
  step = checkpoints.latest()
  if step is None or not (workdir / "result.json").is_file():
    raise InputError(f"{workdir} is not finished (step {step or 0}); go on "
                     "with `align-jax train`")
  about = manifest.read_json(workdir / "manifest.json")
  origins = about["provenance"]
  manifest.check_files(about["files"], manifest.hash_files(origins))
  mesh = fitting_mesh(config)
  parts = build(config.model, Layout(mesh))
  patterns = [p for stage in config.stages for p in stage.train]
  shapes = param_shapes(parts, mesh, patterns)
  index = checkpoints.meta(step)["stage"]
  rates = [trainables(shapes, s.train) for s in config.stages[:index + 1]]
  trained, frozen = split(shapes, rates[index])
  earlier = {base(k) for r in rates[:index] for k in r}
  kept = {p: s for p, s in frozen.items()
          if manifest.must_keep(p, origins, earlier)}
  held = checkpoints.restore_frozen(index, kept)
  held |= checkpoints.restore_trained(step, trained)
  checkpoints.close()
  return Merged(config, parts, shapes, held, _sources(parts, shapes), step,
                about)


def of_checkpoint(config: Config, parts: Parts) -> Merged:
  """The parameters of a checkpoint of others, see `hub/whole.py`."""
  shapes = param_shapes(parts, fitting_mesh(config))
  return Merged(config, parts, shapes, {}, _sources(parts, shapes))


def _sources(parts: Parts, shapes: Mapping[str, Any]) -> dict[str, _Source]:
  """The checkpoints of a model's parts, open and checked."""
  own = {}
  for part in parts.specs:
    own[part] = parts.specs[part].held(shapes, f"{part}/" if part else "")
  opened = check_parts(parts.specs, own)
  return {part: _Source(spec, *opened[part], places(spec.family, own[part]))
          for part, spec in parts.specs.items()}


def export_orbax(run: Any, merged: Merged, folder: Path,
                 max_bytes: int = 4 << 30) -> list[Path]:
  """Every parameter as an Orbax checkpoint FOLDER/params, in our names.

  Frozen parameters are read from the files they came from, whose hashes were
  held against the manifest's, and the trained ones laid over them.

  Args:
    run: unused; every layout is given it.
    merged: the parameters.
    folder: where to; config.json, the run's, lies beside.
    max_bytes: of memory at a time. Orbax has some more copies of what it
      writes, and writes whole arrays: one of more than a quarter of this, such
      as a stack of many large layers, is there alone.

  Returns:
    The files of weights.
  """
  del run
  folder.mkdir(parents=True, exist_ok=True)
  groups = (_arrays(merged, paths) for paths in _groups(merged, max_bytes // 4))
  save_arrays(folder / "params", groups)
  manifest.write_json(folder / "config.json", plain(merged.config))
  return sorted(f for f in (folder / "params").rglob("*") if f.is_file())


def _groups(merged: Merged, max_bytes: int) -> Iterator[list[str]]:
  """The parameters' paths, so many at a time."""
  group, size = [], 0
  for path, shape in merged.shapes.items():
    needs = math.prod(shape.shape) * shape.dtype.itemsize
    if group and size + needs > max_bytes:
      yield group
      group, size = [], 0
    group.append(path)
    size += needs
  yield group


def _arrays(merged: Merged, paths: Iterable[str]) -> dict[str, jax.Array]:
  """Parameters, each whole on one device: a run's mesh may repeat them."""
  arrays = {}
  for path in paths:
    stacked = "layers" in path.split("/")[:-1]

    def read(cuts: tuple[slice, ...], path=path,
             stacked=stacked) -> np.ndarray:
      if not stacked:
        return merged.value(path, 0)[cuts]
      return np.stack([merged.value(path, n)[cuts[1:]]
                       for n in range(cuts[0].start, cuts[0].stop)])

    alone = merged.shapes[path].update(sharding=None)
    arrays[path] = fill(alone, read, stacked, int(stacked))
  return arrays
