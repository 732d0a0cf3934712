"""Generation and closed-set scores, batched, at static shapes.

  images  --encode-->   visual tokens of a set        once a set of images
  prefix  --prefill-->  cache rows                    once a set of images
  rest    --prefill-->  gathered rows + the question  once a prompt
  answer  --decode-->   one token a step until every row has ended; greedy,
                        or a beam search (see beam.py)

What comes out does not depend on how prompts are batched, padded or shared.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding

from align_jax.connectors.protocol import ConnectorOutput
from align_jax.decoders.greedy import continue_greedily
from align_jax.decoders.transformer import KVCache, init_cache
from align_jax.errors import InputError
from align_jax.evals import prompts as cut
from align_jax.evals.beam import search
from align_jax.evals.decoding import Beam
from align_jax.evals.prompts import Prompt
from align_jax.parallel.layout import Layout

# key of a set of images -> (u8[n,H,W,3], boxes i32[n,4])
ReadImages = Callable[[Hashable], tuple[np.ndarray, np.ndarray]]


@struct.dataclass
class Chunk:
  """A piece of each prompt: tokens, bank indices, first position, length."""
  tokens: jax.Array
  visual_index: jax.Array
  start: jax.Array
  length: jax.Array

  def places(self) -> tuple[jax.Array, jax.Array]:
    """positions and segment_ids i32[B,L]; padding is segment 0."""
    offset = jnp.arange(self.tokens.shape[1])[None]
    inside = (offset < self.length[:, None]).astype(jnp.int32)
    return (self.start[:, None] + offset) * inside, inside


class Generator:
  """Answers prompts with a vision-language model.

  Attributes:
    model: a `VLM`.
    params: its parameters; they stay where they are.
    stop: tokens that end an answer.
    rows: prompts, and sets of images, of one batch.
    noise: standard deviation of Gaussian noise on the tower's features.
    absolute: whether that is a number, or in units of the standard deviation
      of each image's own features.
    seed: of the noise, which is keyed by the set of images, so that neither
      batching nor order changes it.
    share: prefixes of prompts over the same images are read once.
  """

  def __init__(self, model: nn.Module, params: Any, stop: Sequence[int], *,
               rows: int = 32, noise: float = 0.0, absolute: bool = False,
               seed: int = 0, share: bool = True):
    if not stop:
      raise ValueError("generation needs at least one stop token")
    self.model, self.params = model, params
    self.stop = jnp.asarray(sorted(set(stop)), jnp.int32)
    self.rows, self.seed = rows, seed
    self.noise, self.absolute = noise, absolute
    # A prompt whose end decides what its images hold is read in one piece.
    self.share = share and not model.connector.feedback_layer

  def generate(
      self,
      prompts: Sequence[Prompt],
      read: ReadImages | None = None,
      max_new_tokens: int = 16,
      progress: Callable[[int], None] = lambda done: None,
      beam: Beam | None = None,
  ) -> list[list[int]]:
    """Continuations, in the order of the prompts.

    Args:
      prompts: what to continue.
      read: gives the images of a set; called once a set.
      max_new_tokens: answers are cut there.
      progress: called with the number of prompts just answered.
      beam: how to search; None takes the likeliest token each time. A cache
        is then as many times larger as there are beams.

    Returns:
      Token ids of each answer, without the stop token.

    Raises:
      InputError: a beam search that grows a prompt beyond where a decoder
        with LongRoPE changes all keys.
    """
    limit = self.model.decoder.config.cached_positions
    stop = set(np.asarray(self.stop).tolist())

    def rows(which: Sequence[Prompt], count: int) -> list[list[int]]:
      def answer(_: Sequence[int], *args: Any) -> np.ndarray:
        if beam is not None:
          return _beam(self.model, count, beam, self.params, self.stop, *args)
        return _generate(self.model, count, self.params, self.stop, *args)

      return [row.tolist()
              for row in self._over(which, read, answer, progress)]

    if limit is None:
      made = rows(prompts, max_new_tokens)
    elif beam is not None:
      self._check_lengths(prompts, max_new_tokens)
      made = rows(prompts, max_new_tokens)
    else:
      made = _over_the_limit(prompts, max_new_tokens, limit, stop, rows)
    return [_until(row, stop) for row in made]

  def score(
      self,
      prompts: Sequence[Prompt],
      answers: Sequence[Sequence[Any]],
      read: ReadImages | None = None,
      progress: Callable[[int], None] = lambda done: None,
  ) -> np.ndarray:
    """Log-probability of each answer after each prompt.

    Args:
      prompts: what is continued.
      answers: token ids, the end of turn among them if it shall count; or
        for each prompt its own, as many for every one.
      read: as in `generate`.
      progress: as in `generate`.

    Returns:
      f32[prompts, answers].

    Raises:
      InputError: an answer that grows a prompt beyond where a decoder with
        LongRoPE changes all keys.
    """
    own = np.ndim(answers[0][0]) > 0
    ids = [[np.asarray(a, np.int32) for a in one]
           for one in (answers if own else [answers])]
    longest = max(len(a) for one in ids for a in one)
    self._check_lengths(prompts, longest)
    table = np.stack([cut.pad(one, len(one), longest) for one in ids], axis=1)
    sizes = np.stack([cut.lengths(one, len(one)) for one in ids], axis=1)

    def answer(members: Sequence[int], *args: Any) -> np.ndarray:
      at = list(members) if own else [0]
      return _score(self.model, self.params, jnp.asarray(table[:, at]),
                    jnp.asarray(sizes[:, at]), *args)

    return np.stack(self._over(prompts, read, answer, progress))

  def _check_lengths(self, prompts: Sequence[Prompt], more: int) -> None:
    """Refuses what would need keys of both sides of LongRoPE's limit.

    Raises:
      InputError: prompts that begin below it and end beyond.
    """
    limit = self.model.decoder.config.cached_positions
    over = [len(p.tokens) for p in prompts
            if limit is not None and len(p.tokens) <= limit
            and len(p.tokens) + more - 1 > limit]
    if over:
      raise InputError(
          f"a prompt of {max(over)} tokens and {more} more pass the {limit} "
          "positions beyond which this decoder's RoPE changes all keys: such "
          "an answer would have to be read anew for each beam or choice, "
          "which is not implemented; greedy generation is")

  def _over(self, prompts: Sequence[Prompt], read: ReadImages | None,
            answer: Callable[..., jax.Array],
            progress: Callable[[int], None]) -> list[np.ndarray]:
    """Runs `answer` over all prompts, batch by batch."""
    out: list[Any] = [None] * len(prompts)
    limit = self.model.decoder.config.cached_positions
    # Keys of a long prompt's beginning are others than a short one's.
    share = self.share and (limit is None or all(
        len(p.tokens) <= limit for p in prompts))
    for wave in cut.waves(cut.groups(prompts, share), self.rows):
      first = [prompts[g.members[0]] for g in wave]
      visual, per_image = self._encode(first, read)
      length = cut.bucket(max(g.shared for g in wave))
      places = visual.tokens.shape[1] * per_image
      prefix = self._prefix(wave, first, length, places, visual)
      # Long rests first: batches of like lengths, and memory fails early.
      order = sorted(((i, row) for row, g in enumerate(wave)
                      for i in g.members),
                     key=lambda pair: (wave[pair[1]].shared
                                       - len(prompts[pair[0]].tokens)))
      for at in range(0, len(order), self.rows):
        part = order[at:at + self.rows]
        b = cut.rows_for(len(part), self.rows)
        starts = [wave[row].shared for _, row in part]
        chunk = self._chunk([prompts[i] for i, _ in part], starts, None, b,
                            places)
        rows = np.zeros(b, np.int32)
        rows[:len(part)] = [row for _, row in part]
        # Rows behind the last prompt are nobody's; they take any member.
        members = [i for i, _ in part] + [part[0][0]] * (b - len(part))
        got = np.asarray(answer(members, prefix, self._place(rows), visual,
                                chunk))
        for (i, _), result in zip(part, got):
          out[i] = result
        progress(len(part))
    return out

  def _encode(self, prompts: Sequence[Prompt], read: ReadImages | None
              ) -> tuple[ConnectorOutput, int]:
    """Visual tokens of these prompts' images, and T."""
    keys = [p.images for p in prompts]
    u = cut.rows_for(len(keys), self.rows)
    size = self.model.tower.config.image_size
    sets = [(np.zeros((0, size, size, 3), np.uint8),
             np.zeros((0, 4), np.int32)) if k is None else read(k)
            for k in keys]
    n = max(1, *(len(images) for images, _ in sets))
    batch = {
        "images": np.zeros((u, n, size, size, 3), np.uint8),
        "image_boxes": np.zeros((u, n, 4), np.int32),
        "image_segment_ids": np.zeros((u, n), np.int32),
        # The prompt is its row's only sample.
        "extras": cut.stack_extras(prompts, u)}
    for i, (images, boxes) in enumerate(sets):
      batch["images"][i, :len(images)] = images
      batch["image_boxes"][i, :len(images)] = boxes
      batch["image_segment_ids"][i, :len(images)] = 1
    draws = np.zeros(u, np.int32)
    draws[:len(keys)] = [_draw_of(k) for k in keys]
    visual = _encode(self.model, self.noise > 0, self.params,
                     jax.tree.map(self._place, batch), self._place(draws),
                     self.noise, self.absolute, self.seed)
    return visual, visual.tokens.shape[2]

  def _prefix(self, wave: Sequence[cut.Group], first: Sequence[Prompt],
              length: int, places: int, visual: ConnectorOutput
              ) -> KVCache | None:
    if not length:
      return None
    chunk = self._chunk(
        [Prompt(p.tokens[:g.shared], p.visual[:g.shared])
         for g, p in zip(wave, first)],
        [0] * len(wave), length, visual.tokens.shape[0], places)
    return _prefill(self.model, self.params, visual, chunk)

  def _chunk(self, prompts: Sequence[Prompt], starts: Sequence[int],
             length: int | None, rows: int, places: int) -> Chunk:
    """What follows `starts`, padded to a bucket of its own or to `length`."""
    tokens = [p.tokens[s:] for p, s in zip(prompts, starts)]
    visual = [p.visual[s:] for p, s in zip(prompts, starts)]
    length = length or cut.bucket(max(map(len, tokens)))
    index = cut.pad(visual, rows, length, fill=-1)
    # Special tokens lie behind the images in a row's bank.
    index = np.where(index < -1, places - 2 - index, index)
    start = np.zeros(rows, np.int32)
    start[:len(starts)] = starts
    return jax.tree.map(self._place, Chunk(
        cut.pad(tokens, rows, length), index, start,
        cut.lengths(tokens, rows)))

  def _place(self, x: np.ndarray) -> jax.Array:
    """Rows over the mesh, where they divide."""
    layout: Layout = self.model.layout
    if layout.mesh is None:
      return jnp.asarray(x)
    spec = layout.spec("b" + "." * (x.ndim - 1))
    if x.shape[0] % layout.shards(spec[0]):
      spec = layout.spec("." * x.ndim)
    return jax.device_put(x, NamedSharding(layout.mesh, spec))


def _over_the_limit(
    prompts: Sequence[Prompt], count: int, limit: int, stop: set[int],
    rows: Callable[[Sequence[Prompt], int], list[list[int]]],
) -> list[list[int]]:
  """Greedy answers of a decoder with LongRoPE, on either side of its limit.

  A sample that grows beyond is read anew there, once, as transformers does.

  Args:
    prompts: to be continued.
    count: of new tokens.
    limit: up to which length cached keys stay right.
    stop: tokens that end an answer.
    rows: prompts and a count -> as many new tokens of each.
  """
  made: list[list[int]] = [[] for _ in prompts]

  def grow(room_of: Callable[[int], int]) -> None:
    turns: dict[int, list[int]] = {}
    for i, new in enumerate(made):
      room = min(room_of(len(prompts[i].tokens) + len(new)),
                 count - len(new))
      if room > 0 and not stop.intersection(new):
        turns.setdefault(room, []).append(i)
    for room, which in sorted(turns.items()):
      asked = [dataclasses.replace(
          p, tokens=np.append(p.tokens, made[i]).astype(np.int32),
          visual=np.append(p.visual, [-1] * len(made[i])).astype(np.int32))
               for i in which for p in [prompts[i]]]
      for i, new in zip(which, rows(asked, room)):
        made[i] += new

  grow(lambda length: limit - length + 1)  # the last one made is not read
  grow(lambda length: count)
  return made


def _draw_of(key: Hashable) -> int:
  """A number for the noise of a set of images: equal in every run."""
  if isinstance(key, int):
    return key
  return zlib.crc32(repr(key).encode()) & 0x7FFFFFFF


def _until(tokens: list[int], stop: set[int]) -> list[int]:
  for i, token in enumerate(tokens):
    if token in stop:
      return tokens[:i]
  return tokens


def _call(model: nn.Module, params: Any, method: str, *args: Any) -> Any:
  return model.apply({"params": params}, *args, method=method)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(model: nn.Module, noisy: bool, params: Any,
            batch: dict[str, jax.Array], draws: jax.Array, sigma: jax.Array,
            absolute: jax.Array, seed: jax.Array) -> ConnectorOutput:
  """Sets of images -> visual tokens f[U,N,T,D].

  Of what the connector reports, its special tokens alone are given: the rest,
  such as a weight for each word of the vocabulary, is never computed.
  """
  features = _call(model, params, "features", batch)
  if noisy:
    def draw(key: jax.Array, features_npc: jax.Array) -> jax.Array:
      x = features_npc.astype(jnp.float32)
      std = jnp.where(absolute, 1.0, x.std(axis=(1, 2), keepdims=True))
      x = x + sigma * std * jax.random.normal(key, x.shape)
      return x.astype(features_npc.dtype)

    root = jax.random.key(seed)
    keys = jax.vmap(lambda d: jax.random.fold_in(root, d))(draws)
    features = jax.vmap(draw)(keys, features)
  visual = _call(model, params, "connect", features,
                 batch["image_segment_ids"], batch["extras"])
  kept = {k: v for k, v in visual.aux.items() if k == "special_xd"}
  return visual.replace(aux=kept)


def _read(model: nn.Module, params: Any, visual: ConnectorOutput,
          chunk: Chunk, cache: KVCache,
          whole: bool = False) -> tuple[jax.Array, KVCache]:
  """Reads a chunk into the cache; `whole`: with it prompts begin and end."""
  x = _call(model, params, "embed", chunk.tokens, chunk.visual_index, visual)
  if whole:
    hidden, cache = _call(model, params, "read", x, *chunk.places(), visual,
                          chunk.visual_index, None, cache)
  else:
    hidden, cache = _call(model, params, "decode", x, *chunk.places(), cache)
  layout = model.layout
  return hidden, cache.replace(k=layout.constrain(cache.k, ".b.h."),
                               v=layout.constrain(cache.v, ".b.h."))


@functools.partial(jax.jit, static_argnums=0)
def _prefill(model: nn.Module, params: Any, visual: ConnectorOutput,
             chunk: Chunk) -> KVCache:
  """Reads prefixes into a cache exactly as long as they are."""
  decoder = model.decoder
  cache = init_cache(decoder.config, *chunk.tokens.shape, decoder.dtype)
  return _read(model, params, visual, chunk, cache)[1]


def _resume(model: nn.Module, params: Any, prefix: KVCache | None,
            rows: jax.Array, visual: ConnectorOutput, chunk: Chunk,
            room: int) -> tuple[jax.Array, KVCache, ConnectorOutput]:
  """Reads the rests behind their prefixes -> (next logits f32[B,V], ...)."""
  decoder, (b, length) = model.decoder, chunk.tokens.shape
  before = prefix.k.shape[2] if prefix is not None else 0
  cache = init_cache(decoder.config, b, before + length + room,
                     decoder.dtype)
  if prefix is not None:
    taken = prefix.take_rows(rows)
    cache = KVCache(
        cache.k.at[:, :, :before].set(taken.k),
        cache.v.at[:, :, :before].set(taken.v),
        cache.positions.at[:, :before].set(taken.positions),
        cache.segment_ids.at[:, :before].set(taken.segment_ids),
        jnp.asarray(before, jnp.int32))
  visual = visual.take_rows(rows)
  hidden, cache = _read(model, params, visual, chunk, cache,
                        whole=prefix is None)
  last = jnp.maximum(chunk.length - 1, 0)
  hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
  return _call(model, params, "logits", hidden), cache, visual


def _text(tokens: jax.Array, start: jax.Array, length: jax.Array) -> Chunk:
  return Chunk(tokens, jnp.full_like(tokens, -1), start, length)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(model: nn.Module, max_new_tokens: int, params: Any,
              stop: jax.Array, prefix: KVCache | None, rows: jax.Array,
              visual: ConnectorOutput, chunk: Chunk) -> jax.Array:
  """i32[B, max_new_tokens]; a row repeats its stop token."""
  logits, cache, visual = _resume(
      model, params, prefix, rows, visual, chunk, max_new_tokens - 1)

  def step(tokens: jax.Array, positions: jax.Array, segments: jax.Array,
           cache: KVCache) -> tuple[jax.Array, KVCache]:
    text = _text(tokens, positions[:, 0], segments[:, 0])
    hidden, cache = _read(model, params, visual, text, cache)
    return _call(model, params, "logits", hidden[:, 0]), cache

  return continue_greedily(
      step, logits, cache, chunk.start + chunk.length, chunk.length > 0,
      max_new_tokens, stop)[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _beam(model: nn.Module, max_new_tokens: int, beam: Beam, params: Any,
          stop: jax.Array, prefix: KVCache | None, rows: jax.Array,
          visual: ConnectorOutput, chunk: Chunk) -> jax.Array:
  """i32[B, max_new_tokens]; what follows a row's stop token is noise."""
  logits, cache, visual = _resume(
      model, params, prefix, rows, visual, chunk, max_new_tokens - 1)
  each = lambda x: jnp.repeat(x, beam.size)
  live = each((chunk.length > 0).astype(jnp.int32))
  position = each(chunk.start + chunk.length)
  # Answers are text: no beam needs the images any more.
  blank = ConnectorOutput(
      jnp.zeros((len(position), 1, 1, visual.tokens.shape[-1]),
                visual.tokens.dtype), {})

  def advance(cache: KVCache, tokens: jax.Array, step: jax.Array
              ) -> tuple[jax.Array, KVCache]:
    hidden, cache = _read(
        model, params, blank, _text(tokens[:, None], position + step, live),
        cache)
    return _call(model, params, "logits", hidden[:, 0]), cache

  return search(beam, logits, cache, advance, stop, chunk.length > 0,
                max_new_tokens)


@functools.partial(jax.jit, static_argnums=0)
def _score(model: nn.Module, params: Any, answers: jax.Array,
           sizes: jax.Array, prefix: KVCache | None, rows: jax.Array,
           visual: ConnectorOutput, chunk: Chunk) -> jax.Array:
  """f32[B,A], log-probability of each of the A answers i32[A,B,length].

  Answers that all rows have in common are i32[A,1,length].
  """
  length = answers.shape[2]
  logits, cache, visual = _resume(
      model, params, prefix, rows, visual, chunk, length - 1)
  first = jax.nn.log_softmax(logits)
  live = chunk.length > 0
  position = chunk.start + chunk.length

  def one(answer: tuple[jax.Array, jax.Array]) -> jax.Array:
    tokens, size = answer
    tokens = jnp.broadcast_to(tokens, (first.shape[0], length))
    total = jnp.take_along_axis(first, tokens[:, :1], axis=-1)[:, 0]
    if length == 1:
      return total
    heard = _text(tokens[:, :-1], position, jnp.where(live, size - 1, 0))
    hidden, _ = _read(model, params, visual, heard, cache)
    log_probs = jax.nn.log_softmax(_call(model, params, "logits", hidden))
    follow = jnp.take_along_axis(log_probs, tokens[:, 1:, None],
                                 axis=-1)[..., 0]
    counts = jnp.arange(1, length) < size[:, None]
    return total + jnp.where(counts, follow, 0).sum(-1)

  return jax.lax.map(one, (answers, sizes)).T
