"""Sources -> batches, in an order that only the seed decides.

  stream s of S:  every S-th example of each source, from the s-th
                  -> shuffled anew each epoch -> sources mixed by weight
                  -> rendered, images decoded (threads) -> packed into rows
  global row r    comes from stream r % S

A process reads the streams whose rows its devices hold, so any number of
processes sees the same global batches, and a stream's state means the same to
all of them.

A batch, all of numpy, B rows of this process:

  tokens targets positions segment_ids visual_index   i32[B,L]
  loss_weights                                        f32[B,L]
  images                       u8[B,N,H,W,3], or features f32[B,N,P,C]
  image_segment_ids                                   i32[B,N]
  image_boxes                                         i32[B,N,4]
  extras                            {name: [B,S,...]}, see data/batch.py
"""

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from align_jax.config import DataConfig, SourceConfig
from align_jax.data import SOURCES, rows
from align_jax.data.example import BadSample, Source
from align_jax.data.features import FeatureReader
from align_jax.data.images import BadImage, ImageReader
from align_jax.data.quarantine import Quarantine
from align_jax.data.render import Renderer
from align_jax.errors import InputError
from align_jax.registry import nearest

ON_BAD_SAMPLE = ("error", "quarantine")

# Samples that are read ahead, in each stream.
READ_AHEAD = 32


def open_source(name: str, config: SourceConfig) -> Source:
  """The source a config asks for.

  Raises:
    ValueError: unknown kind, or options that the source does not take.
  """
  try:
    kind = SOURCES.get(config.kind)
    inspect.signature(kind).bind(**config.options)
  except (KeyError, TypeError) as error:
    raise InputError(f"data.sources.{name} ({config.kind}): "
                     f"{error.args[0]}") from error
  return kind(**config.options)


class Pipeline:
  """What is read, and in which order. Iterating it gives global batches.

  Attributes:
    config: shapes of a batch and its sources.
    mixture: source name -> weight; empty means all sources alike.
    renderer: examples to tokens.
    reader: images to pixels, or to features that are kept.
    seed: decides the order, with the number of a stream.
    quarantine: where bad samples go if `config.on_bad_sample` says so.
    extras: shapes [B,S,...] of fields beyond those of every batch.
    annotate: makes those that sources do not give, example by example.
  """

  def __init__(self, config: DataConfig, mixture: Mapping[str, float],
               renderer: Renderer, reader: ImageReader | FeatureReader,
               seed: int,
               quarantine: str | Path | Quarantine | None = None,
               sources: Mapping[str, Source] | None = None,
               extras: rows.Extras | None = None,
               annotate: rows.Annotate | None = None):
    """See the class.

    Args:
      config, mixture, renderer, reader, seed: attributes.
      quarantine: the file that lists bad samples, or a Quarantine.
      sources: opened ones, which spares opening them again.
      extras: attribute; none by default.
      annotate: attribute.

    Raises:
      InputError: a config that cannot give batches.
    """
    mixture = dict(mixture) or dict.fromkeys(config.sources, 1.0)
    mixture = {name: weight for name, weight in mixture.items() if weight}
    known = set(config.sources) | set(sources or {})
    faults = [f"the mixture names no source of data.sources: {name!r}"
              f"{nearest(name, known)}" for name in mixture
              if name not in known]
    faults += [f"the weight of {name!r} is negative: {weight}"
               for name, weight in mixture.items() if weight < 0]
    if not mixture:
      faults.append("there is no source with a weight above 0")
    if config.streams < 1 or config.rows % config.streams:
      faults.append(f"data.rows = {config.rows} is no multiple of "
                    f"data.streams = {config.streams}")
    if config.on_bad_sample not in ON_BAD_SAMPLE:
      faults.append(f"data.on_bad_sample = {config.on_bad_sample!r} is not "
                    f"one of {', '.join(ON_BAD_SAMPLE)}"
                    f"{nearest(config.on_bad_sample, ON_BAD_SAMPLE)}")
    faults += [f"extras[{name!r}] of {list(spec.shape)}: expected [B,S,...], "
               f"B = data.rows = {config.rows} and S at least 1"
               for name, spec in (extras or {}).items()
               if spec.shape[:1] != (config.rows,) or min(
                   spec.shape[1:2], default=0) < 1]
    if faults:
      raise InputError("\n".join(faults))
    self.extras, self.annotate = dict(extras or {}), annotate
    self.config, self.mixture, self.seed = config, mixture, seed
    self.renderer, self.reader = renderer, reader
    self.quarantine = (quarantine if isinstance(quarantine, Quarantine)
                       else Quarantine(quarantine))
    self.sources = {
        name: (sources or {}).get(name) or open_source(name,
                                                       config.sources[name])
        for name in mixture}
    short = {n: len(s) for n, s in self.sources.items()
             if len(s) < config.streams}
    if short:
      raise InputError(f"fewer examples than data.streams = {config.streams}: "
                       f"{short}")

  def __iter__(self) -> "Batches":
    return self.rows_for(range(self.config.rows))

  def rows_for(self, rows: Sequence[int]) -> "Batches":
    """Batches of only these global rows, in this order."""
    return Batches(self, rows)

  def stream(self, number: int, threads: int) -> grain.DatasetIterator:
    """The rows of one stream, for ever."""
    config = self.config
    mixed = grain.MapDataset.mix(
        [self._samples(name, number) for name in self.mixture],
        list(self.mixture.values()))
    # MapDataset gives any sample by its number, so that threads may read
    # ahead while the state is just the number of the next sample.
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=READ_AHEAD if threads else 0)
    return iter(rows.pack(mixed.to_iter_dataset(options), config,
                          self.extras))

  def _samples(self, name: str, number: int) -> grain.MapDataset:
    """One source's part in a stream; None stands for a bad sample."""
    size, streams = len(self.sources[name]), self.config.streams
    key = hashlib.sha256(f"{self.seed}/{number}/{name}".encode()).digest()
    return (grain.MapDataset.range(number, size, streams)
            .shuffle(seed=int.from_bytes(key[:4], "big"))
            .repeat(None)
            .map(_Load(self, name, len(range(number, size, streams)))))


class _Load:
  """Index in a source -> sample ready for packing, or None if it is bad."""

  def __init__(self, pipeline: Pipeline, name: str, size: int):
    self.pipeline, self.name, self.size = pipeline, name, size
    self.bad: set[int] = set()

  def __call__(self, index: int) -> dict[str, np.ndarray] | None:
    try:
      return self._load(int(index))
    except BadSample as bad:
      if self.pipeline.config.on_bad_sample == "error":
        raise
      self.pipeline.quarantine.add(bad, self.name)
      self.bad.add(int(index))
      if len(self.bad) == self.size:
        raise InputError(f"every sample of source {self.name!r} (or of its "
                         f"part in a stream) is bad; the last: {bad}") from bad
      return None

  def _load(self, index: int) -> dict[str, np.ndarray]:
    config, reader = self.pipeline.config, self.pipeline.reader
    renderer = self.pipeline.renderer
    example = self.pipeline.sources[self.name][index]
    try:
      images, places = reader.places(
          example["images"], renderer.tokens_per_image, renderer.frame)
    except BadImage as bad:
      raise BadSample(example["origin"], str(bad)) from bad
    rendered = renderer({**example, "images": images}, places)
    if excess := rows.over_budget(rendered, config):
      raise BadSample(example["origin"], excess)
    extras = rows.extras_of(rows.annotated(example, self.pipeline.annotate),
                            self.pipeline.extras)
    try:
      pixels, boxes = reader.slots(rendered.images)
    except BadImage as bad:
      raise BadSample(example["origin"], str(bad)) from bad
    return rows.element(rendered, pixels, boxes) | extras


class Batches(Iterator[dict[str, Any]]):
  """Batches of one process, and where in the data they are.

  Attributes:
    stats: of the last batch, this process's rows: "samples", "tokens",
      "supervised", "images", "token_fill" and "image_fill" (shares of the
      room that are used), and "quarantined" so far.
  """

  def __init__(self, pipeline: Pipeline, rows_: Sequence[int]):
    config = pipeline.config
    self.pipeline, self.rows = pipeline, list(rows_)
    wrong = [r for r in self.rows if not 0 <= r < config.rows]
    if wrong or not self.rows:
      raise InputError(f"rows {wrong or self.rows} of a batch of "
                       f"{config.rows}")
    numbers = sorted({r % config.streams for r in self.rows})
    threads = -(-config.workers // len(numbers))
    self._streams = {n: pipeline.stream(n, threads) for n in numbers}
    self.stats: dict[str, float] = {}

  def __next__(self) -> dict[str, Any]:
    config = self.pipeline.config
    wanted, found = set(self.rows), {}
    for number, stream in self._streams.items():
      for row in range(number, config.rows, config.streams):
        packed = next(stream)  # a row of another process is read and dropped
        if row in wanted:
          found[row] = rows.row(packed,
                                self.pipeline.renderer.tokens_per_image,
                                config.images_per_row, self.pipeline.extras)
    batch = jax.tree.map(lambda *parts: np.stack(parts),
                         *(found[row] for row in self.rows))
    self._count(batch)
    return batch

  def get_state(self) -> dict[str, Any]:
    """Where the batch last taken ended; plain JSON, nothing read ahead."""
    pipeline = self.pipeline
    return {"seed": pipeline.seed, "stream_count": pipeline.config.streams,
            "mixture": dict(pipeline.mixture),
            "sizes": {n: len(s) for n, s in pipeline.sources.items()},
            "streams": {str(n): _plain(s.get_state())
                        for n, s in self._streams.items()}}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Continues after the batch at which `state` was taken.

    Raises:
      InputError: the state is of another order, or lacks one of the streams.
    """
    own = self.get_state()
    other = [f"{k} {state.get(k)!r}, here {own[k]!r}"
             for k in ("seed", "stream_count", "mixture", "sizes")
             if state.get(k) != own[k]]
    missing = sorted(own["streams"].keys() - state.get("streams", {}).keys())
    if missing:
      other.append(f"no state of stream(s) {', '.join(missing)}")
    if other:
      raise InputError("the saved data order is another: " + "; ".join(other))
    for number, stream in self._streams.items():
      stream.set_state(state["streams"][str(number)])

  def close(self) -> None:
    """Ends the threads that read ahead."""
    for stream in self._streams.values():
      stream.close()

  def _count(self, batch: Mapping[str, np.ndarray]) -> None:
    segments, slots = batch["segment_ids"], batch["image_segment_ids"]
    tokens, images = np.count_nonzero(segments), np.count_nonzero(slots)
    self.stats = {
        "samples": int(segments.max(axis=1).sum()),
        "tokens": int(tokens),
        "supervised": int(np.count_nonzero(batch["loss_weights"])),
        "images": int(images),
        "token_fill": float(tokens / segments.size),
        "image_fill": float(images / max(slots.size, 1)),
        "quarantined": len(self.pipeline.quarantine),
    }


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The state of all streams, from the states of all processes."""
  return {**states[0],
          "streams": {number: at for state in states
                      for number, at in state.get("streams", {}).items()}}


def _plain(state: Any) -> Any:
  """A state without numpy's numbers, which JSON does not know."""
  if isinstance(state, Mapping):
    return {k: _plain(v) for k, v in state.items()}
  return int(state) if isinstance(state, (int, np.integer)) else state
