"""SEA: visual tokens are pulled toward the words their patches show.

Source: 2408.11813, section 3.2. In each step one word of each labelled patch
is drawn by score, one patch of each window, and one visual token of each word;
for the N pairs left over the global batch

  L_a = sum_i 1/2 (ce of x_i against all t + ce of t_i against all x)

with x_i the connector's output, t_i the mean of the word's sub-word embeddings
in the LLM (a constant), and cosines over a temperature (eq 10 and 11).

What the paper leaves open, and what stands here:
  the weight lambda     not given; the stage's `objectives: {"sea": ...}`
  the temperature       "learnable" and "tau = 0": a log scale that starts at
                        0 is the one reading under which both make sense
  scope of a batch      not given: "global" or "per_device"
  leading space         not given: `lead`
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.build import build
from align_jax.config import Config
from align_jax.connectors import CONNECTORS
from align_jax.errors import InputError
from align_jax.labels.job import crop_of
from align_jax.labels.store import (
  WORDS,
  digest,
  read_manifest,
  read_words,
)
from align_jax.objectives import patch_labels
from align_jax.objectives.words import word_embeddings, word_tokens
from align_jax.ops.info_nce import info_nce
from align_jax.parallel.layout import ROWS, Layout

MAX_LOG_SCALE = 4.6052  # of 100, as CLIP's
SCALAR = "sea_log_scale"
SCOPES = ("global", "per_device")


class Sea:
  """Symmetric InfoNCE between visual tokens and words.

  Options:
    labels: folder that `align-jax label` made; the stage's data come from a
      source of kind "labelled" that reads the same.
    images: I, as the source's.
    n: words of a patch, as the labels'.
    window: k, one token of each k x k is used.
    log_scale: log of one over the temperature, where it is fixed; None for
      the learnt `model.scalars.sea_log_scale`.
    scope: "global", pairs of the whole batch are each other's negatives and
      a word is used once; "per_device", those of one row shard.
    lead: what stands before a word when it is cut into sub-words.
  """

  coupled = True
  model = "vlm"
  name = "sea"
  learns_temperature = True

  def __init__(self, config: Config, labels: str, images: int = 1,
               n: int = 10, window: int = 2, log_scale: float | None = None,
               scope: str = "global", lead: str = " "):
    del images  # the batch's fields have it, see `extras`
    parts = self._set_up(config, window, log_scale, scope)
    words = read_words(Path(labels) / WORDS)
    check_labels(read_manifest(labels), parts, n, words)
    self.table_qm = word_tokens(words, parts.tokenizer, lead)

  @classmethod
  def planned(cls, config: Config, labels: str, window: int = 2,
              log_scale: float | None = None, scope: str = "global",
              **others: Any) -> "Sea":
    """The same without labels and tokenizer, to be compiled and no more."""
    del labels, others
    made = cls.__new__(cls)
    made._set_up(config, window, log_scale, scope)
    made.table_qm = np.zeros((2 ** 16, 4), np.int32)
    return made

  def _set_up(self, config: Config, window: int, log_scale: float | None,
              scope: str) -> Any:
    """What needs no labels; gives the model's parts."""
    if scope not in SCOPES:
      raise InputError(f"objective_options.{self.name}.scope: {scope!r} is "
                       f"none of {', '.join(SCOPES)}")
    if window < 1:
      raise InputError(f"objective_options.{self.name}.window: {window} is "
                       "below 1")
    if self.learns_temperature and log_scale is None and (
        SCALAR not in config.model.scalars):
      raise InputError(
          f"objective_options.{self.name}: the temperature is learnt, so it "
          f"needs model.scalars = {{{SCALAR!r}: 0.0}} and a rate in a "
          f"stage's `train`; or fix it with its option log_scale")
    self.window, self.scope, self.log_scale = window, scope, log_scale
    parts = build(config.model)
    self.tokens = parts.tokens_per_image
    kind = config.model.connector.kind
    if not CONNECTORS.get(kind).keeps_grid:
      fit = [k for k in CONNECTORS.names() if CONNECTORS.get(k).keeps_grid]
      raise InputError(
          f"objective {self.name}: a visual token of connector {kind!r} looks "
          "wherever it likes, so it has no patches of its own to learn the "
          f"words of (those whose tokens have: {', '.join(fit)})")
    try:
      patch_labels.check_grid(parts.model.tower.config.patches, self.tokens)
    except ValueError as error:
      raise InputError(f"objective {self.name} with connector "
                       f"{kind!r}: {error}") from error
    return parts

  @classmethod
  def extras(cls, config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """`sea_words` i32 and `sea_scores` f32, [B,S,I,P,n], S = N."""
    options = config.objective_options.get(cls.name, {})
    shape = (config.data.rows, max(config.data.images_per_row, 1),
             options.get("images", 1),
             build(config.model).model.tower.config.patches,
             options.get("n", 10))
    words, scores = patch_labels.FIELDS
    return {words: jax.ShapeDtypeStruct(shape, jnp.int32),
            scores: jax.ShapeDtypeStruct(shape, jnp.float32)}

  def pairs(self, batch: dict[str, Any], rng: jax.Array,
            layout: Layout) -> patch_labels.Pairs:
    """The step's pairs, [B,R]."""
    draw, unique = jnp.moveaxis(
        jax.vmap(lambda key: jax.random.split(key, 2))(rng), 1, 0)
    words, scores = patch_labels.of_slots(
        batch["extras"], batch["image_segment_ids"])
    found = patch_labels.draw(draw, words, scores, self.tokens, self.window)
    groups = layout.shards(ROWS) if self.scope == "per_device" else 1
    return patch_labels.first_of_each(unique, found, groups)

  def weight(self, batch: dict[str, Any], rng: jax.Array,
             layout: Layout = Layout()) -> jax.Array:
    """N, the pairs of this step, f32[]."""
    return self.pairs(batch, rng, layout).keep.sum().astype(jnp.float32)

  def vectors(self, outputs: dict[str, Any], batch: dict[str, Any],
              rng: jax.Array, layout: Layout,
              ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The pairs themselves: x f[B,R,D], t f32[B,R,D] and keep b[B,R]."""
    token, word, keep, _ = self.pairs(batch, rng, layout)
    return tokens_at(outputs, token), word_embeddings(
        outputs["embed_vd"], self.table_qm, jnp.maximum(word, 0), layout), keep

  def scale(self, outputs: dict[str, Any]) -> jax.Array:
    """One over the temperature, f32[]."""
    log_scale = outputs["scalars"][SCALAR] if self.log_scale is None else (
        jnp.float32(self.log_scale))
    return jnp.exp(jnp.minimum(log_scale, MAX_LOG_SCALE))

  def __call__(self, outputs: dict[str, Any], batch: dict[str, Any],
               rng: jax.Array, layout: Layout) -> jax.Array:
    """The loss summed over the pairs, f32[]."""
    return self.contrast(outputs, *self.vectors(outputs, batch, rng, layout),
                         layout)

  def measures(self, outputs: dict[str, Any], batch: dict[str, Any],
               rng: jax.Array, layout: Layout) -> dict[str, jax.Array]:
    """Of the first row's pairs, among the words of all: f32[], no gradients.

    hit_rate, how often the nearest word is the pair's own (eq 4), cosine to
    it, and the number of all pairs.
    """
    x, t, keep = map(jax.lax.stop_gradient, self.vectors(
        outputs, batch, rng, layout))
    some, flat = unit(x[0]), unit(t).reshape(-1, t.shape[-1])
    cosine = jnp.where(keep.reshape(-1), some @ flat.T, -jnp.inf)
    own = (some * unit(t[0])).sum(-1)
    mean = lambda a: jnp.where(keep[0], a, 0.0).sum() / jnp.maximum(
        keep[0].sum(), 1)
    return {"hit_rate": mean(own >= cosine.max(-1) - 1e-6),
            "cosine": mean(own), "pairs": keep.sum().astype(jnp.float32)}

  def contrast(self, outputs: dict[str, Any], x: jax.Array, t: jax.Array,
               keep: jax.Array, layout: Layout) -> jax.Array:
    """InfoNCE of the pairs x f[B,R,D], t f[B,R,D], keep b[B,R]: f32[]."""
    flat = lambda a: unit(a).reshape(-1, a.shape[-1])
    return info_nce(flat(x), flat(t), keep.reshape(-1), self.scale(outputs),
                    layout=layout, alone=self.scope == "per_device")


def check_labels(manifest: dict[str, Any], parts: Any, n: int,
                 words: Sequence[str]) -> None:
  """Refuses labels of other patches than those that the run's tower sees.

  Which tower made them is free: DINOv2 may learn from CLIP's. So is the
  tokenizer, since labels are words.

  Raises:
    InputError: another crop, grid or n, or a word list that was changed since
      its words were counted; all faults together.
  """
  wanted = {"n": n, "patches": parts.model.tower.config.patches,
            "crop": crop_of(parts.processor, parts.image_size),
            "words_sha256": digest(words)}
  faults = [f"{name}: the labels' {manifest.get(name)!r}, this run's {own!r}"
            for name, own in wanted.items() if manifest.get(name) != own]
  if faults:
    raise InputError("the labels do not fit this run: " + "; ".join(faults))


def tokens_at(outputs: dict[str, Any], token: jax.Array) -> jax.Array:
  """The visual tokens f[B,R,D] at places i32[B,R] of each row's N*T."""
  visual = outputs["visual_tokens"]
  return jnp.take_along_axis(
      visual.reshape(visual.shape[0], -1, visual.shape[-1]),
      token[..., None], axis=1)


def unit(x: jax.Array) -> jax.Array:
  """Each vector at length one, in f32; a zero stays zero."""
  x = x.astype(jnp.float32)
  square = jnp.square(x).sum(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
