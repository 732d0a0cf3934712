"""From a model's config to its modules, its host parts and its parameters.

  parts = build(config.model, layout)          # no array is made
  params, origins = init_params(parts, mesh, patterns, key)

Abstract first: shapes, then shardings, then each array is loaded or drawn
straight into its shards. No host ever holds a whole model.
"""

import dataclasses
import fnmatch
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from align_jax.config import (
  Config,
  ConnectorConfig,
  DataConfig,
  ModelConfig,
  PartConfig,
)
from align_jax.connectors import CONNECTORS
from align_jax.connectors.protocol import Connector
from align_jax.data import TILINGS
from align_jax.data.example import Example
from align_jax.data.images import ImageReader
from align_jax.data.render import Renderer
from align_jax.data.tiling import Frame
from align_jax.decoders import DECODERS
from align_jax.decoders.lora import Lora
from align_jax.decoders.transformer import DecoderConfig
from align_jax.errors import InputError
from align_jax.hub.connector_file import is_connector, read_connector
from align_jax.hub.pretrained import (
  Spec,
  load_parts,
  load_processor,
  load_tokenizer,
  read_spec,
)
from align_jax.hub.published import PUBLISHED, read_published
from align_jax.parallel.layout import Layout
from align_jax.parallel.rules import check_sharded, shardings
from align_jax.towers import TOWERS
from align_jax.train.select import covers, flatten, unflatten

# Below this a model may lie whole on every device.
_SMALL = 50_000_000


@dataclasses.dataclass(frozen=True)
class Parts:
  """A model and what it needs on the host.

  Attributes:
    model: the Linen module, laid out for its mesh.
    config: it was made from.
    specs: part -> its pretrained checkpoint, where it has one; "" is the
      whole model.
    image_size: H = W of the tower's input.
    tokens_per_image: T.
    copies: connector parameter -> the decoder's that it starts as.
    make: layout -> the module.
    frame: the special tokens around and inside an image, behind the learned
      prompt tokens.
  """
  model: nn.Module
  config: ModelConfig
  specs: Mapping[str, Spec]
  image_size: int
  tokens_per_image: int
  copies: Mapping[str, str]
  make: Callable[[Layout], nn.Module]
  frame: Frame = Frame()

  @functools.cached_property
  def tokenizer(self) -> Any:
    """The transformers fast tokenizer of the text side, read on first use.

    Raises:
      InputError: the config names no place that holds one.
    """
    name = "decoder" if self.config.kind == "vlm" else "text"
    part = getattr(self.config, name)
    source = part.tokenizer or part.weights
    if not source and self.config.kind == "clip":
      source = self.config.tower.weights
    if not source:
      raise InputError(f"model.{name} has no weights and no tokenizer; set "
                       f"model.{name}.tokenizer to a folder that holds one")
    return load_tokenizer(source)

  def renderer(self, data: DataConfig) -> Renderer:
    """Conversations to tokens, images expanded as the connector makes them."""
    return Renderer(self.tokenizer, data.template, self.tokens_per_image,
                    self.config.prompt_tokens, self.frame, data.images_first,
                    data.prompt_length)

  def reader(self, data: DataConfig) -> ImageReader:
    """Image files to pixels, cut into tiles as the config says."""
    tiling = (TILINGS.get(data.tiling.kind)(**data.tiling.options)
              if data.tiling.kind else None)
    if tiling:  # whether it takes T tokens
      tiling.places(self.image_size, self.image_size, self.image_size,
                    self.tokens_per_image, self.frame)
    return ImageReader(self.processor, self.image_size, data.max_pixels,
                       tiling, data.scaled_decode)

  @functools.cached_property
  def annotate(self) -> Callable[[Example], dict[str, np.ndarray]] | None:
    """An example -> what its connector reads of it, see `extras`; or None."""
    if self.config.kind != "vlm":
      return None
    connector = self.config.connector
    return CONNECTORS.get(connector.kind).annotator(**connector.options)

  @functools.cached_property
  def processor(self) -> Any:
    """The PIL image processor beside the tower's weights, or None."""
    spec = self.specs.get("tower") or self.specs.get("")
    return load_processor(spec) if spec else None


def build(config: ModelConfig, layout: Layout = Layout()) -> Parts:
  """The modules of a model; tokenizer and processor on first use.

  Raises:
    InputError: weights that are not there, or sizes that do not fit together.
  """
  return {"vlm": _vlm, "clip": _clip}[config.kind](config, layout)


def _vlm(config: ModelConfig, layout: Layout) -> Parts:
  from align_jax.vlm import VLM

  tower, tower_spec = _read(config.tower, "tower", TOWERS)
  decoder, decoder_spec = _read(config.decoder, "decoder", DECODERS)
  kind = CONNECTORS.get(config.connector.kind)
  # A module's fields are hashed, as lists cannot be.
  options = {k: tuple(v) if isinstance(v, list) else v
             for k, v in config.connector.options.items()}
  patches = tower.patches + config.tower.class_token
  lora = Lora(**dataclasses.asdict(config.lora)) if config.lora.rank else None
  connector_spec = _connector_spec(config.connector)

  def make(layout: Layout) -> VLM:
    shared = dict(dtype=jnp.dtype(config.dtype), layout=layout)
    return VLM(
        tower.make(layer=config.tower.layer, remat=config.remat,
                   class_token=config.tower.class_token, **shared),
        kind(dim_out=decoder.width, vocab_size=decoder.vocab_size, **shared,
             **options),
        decoder.make(remat=config.remat, lora=lora, **shared), layout,
        tuple(config.scalars.items()), config.prompt_tokens, config.newline)

  copies = {
      f"connector/{own}": "decoder/" + (
          "embed_vd" if source == "head_vd" and decoder.tied_head else source)
      for own, source in kind.copied_from_decoder(**options).items()
      if connector_spec is None}
  added = _added(config.connector, connector_spec)
  copies |= {f"connector/{own}": f"connector/{source}"
             for own, source in added.items() if source}
  return Parts(
      model=make(layout), config=config, make=make, copies=copies,
      specs=_given(tower=tower_spec, connector=connector_spec,
                   decoder=decoder_spec),
      image_size=tower.image_size,
      tokens_per_image=kind.tokens_out(patches, **options),
      frame=_frame(kind.frame(**options), config.newline))


def _frame(frame: Frame, newline: bool) -> Frame:
  """A connector's frame behind the model's own newline.

  Raises:
    InputError: the connector has one too.
  """
  if not newline:
    return frame
  if frame.newline:
    raise InputError("model.newline and the connector's own newline: one of "
                     "them")
  return frame.shifted(1)._replace(newline=(0,))


def _connector_spec(config: ConnectorConfig) -> Spec | None:
  """The checkpoint that a connector starts as: ours, or a whole model's.

  Raises:
    InputError: weights of another connector than the config's. Options decide
      what is computed, and weights alone do not show them.
  """
  if not config.weights:
    return None
  if is_connector(config.weights):
    spec = read_connector(config.weights)
    kind = CONNECTORS.get(config.kind)
    if kind.extends and spec.config["connector"] == kind.extends:
      return _grown(spec, kind)
    return read_connector(config.weights, config.kind)
  spec = read_spec(config.weights, "connector")
  theirs, named = dict(spec.config.options), spec.config.connector
  kind, inside = CONNECTORS.get(config.kind), CONNECTORS.get(named)
  fields = [f.name for f in dataclasses.fields(inside)
            if f.name not in {f.name for f in dataclasses.fields(Connector)}
            and f.name not in (*inside.free, *kind.free)]
  differ = [
      f"{name} {wanted!r} instead of {held!r}" for name in fields
      for wanted, held in [(config.options.get(name, getattr(kind, name, None)),
                            theirs.get(name, getattr(inside, name)))]
      if wanted != held]
  fits = named in (config.kind, kind.extends)
  if not fits or differ:
    raise InputError(
        f"model.connector: {config.weights} holds a connector {{'kind': "
        f"{named!r}, 'options': {theirs}}}, the config has "
        f"{config.kind!r} with {dict(config.options)}"
        + (f" ({', '.join(differ)})" if fits else ""))
  return spec if named == config.kind else _grown(spec, kind)


def _grown(spec: Spec, kind: type[Connector]) -> Spec:
  """Another connector's checkpoint, as this kind that extends it reads it."""
  left = [path for path in spec.family.rules
          if any(fnmatch.fnmatchcase(path, p) for p in kind.leaves)]
  keys = [re.escape(spec.family.rules[path][0]).replace(r"\{n\}", r"\d+")
          for path in left]
  family = dataclasses.replace(
      spec.family, ignored=(*spec.family.ignored, *(f"^{k}$" for k in keys)),
      rules={path: rule for path, rule in spec.family.rules.items()
             if path not in left})
  return dataclasses.replace(spec, family=family, added=tuple(kind.added))


def _added(config: ConnectorConfig, spec: Spec | None) -> Mapping[str, str]:
  """What a connector has beyond the one whose weights it starts from."""
  return CONNECTORS.get(config.kind).added if spec and spec.added else {}


def _clip(config: ModelConfig, layout: Layout) -> Parts:
  from align_jax.towers.clip import DualConfig
  from align_jax.towers.text import TextConfig

  spec = None
  if config.tower.weights:
    spec = read_spec(config.tower.weights)
    dual = spec.config
    if not isinstance(dual, DualConfig):
      raise InputError(f"model.tower.weights = {config.tower.weights!r} holds "
                       f"a {spec.kind!r}, not a whole CLIP model")
  else:
    sizes = dict(config.text.config)
    width = sizes.pop("embed_width")
    dual = DualConfig(_read(config.tower, "tower", TOWERS)[0],
                      TextConfig(**sizes), width)

  def make(layout: Layout) -> nn.Module:
    return dual.make(dtype=jnp.dtype(config.dtype), remat=config.remat,
                     layout=layout)

  return Parts(
      model=make(layout), config=config, make=make, copies={},
      specs={"": spec} if spec else {}, image_size=dual.tower.image_size,
      tokens_per_image=0)


def _read(part: PartConfig, name: str,
          registry: Any) -> tuple[Any, Spec | None]:
  """A part's own config, from its checkpoint or from the sizes given."""
  if part.weights:
    spec = read_spec(part.weights, name)
    if part.published:
      _check_published(part, name, spec)
    return spec.config, spec
  if part.published:
    kind, config = read_published(part.published, name)
    # One body serves all families of decoders; towers are of many classes.
    if isinstance(config, DecoderConfig) != (registry is DECODERS):
      raise InputError(f"model.{name}.published: {part.published!r} is a "
                       f"{kind}, which is no {registry.kind}")
    return config, None
  try:
    return registry.get(part.kind)(**part.config), None
  except (TypeError, ValueError) as error:
    raise InputError(f"model.{name}.config: {error}") from error


def _check_published(part: PartConfig, name: str, spec: Spec) -> None:
  """Refuses weights of other sizes than the config was planned for.

  Raises:
    InputError: names the sizes that differ.
  """
  kind, config = read_published(part.published, name)
  ours, theirs = dataclasses.asdict(config), dataclasses.asdict(spec.config)
  differ = ([f"a {spec.kind} instead of a {kind}"] if kind != spec.kind else
            [f"{field} {theirs[field]!r} instead of {size!r}"
             for field, size in ours.items() if theirs[field] != size])
  if differ:
    raise InputError(f"model.{name}: {part.weights} is not {part.published!r}: "
                     + ", ".join(differ))


def _given(**specs: Spec | None) -> dict[str, Spec]:
  return {name: spec for name, spec in specs.items() if spec}


def _one_row(parts: Parts) -> dict[str, jax.Array]:
  """The smallest batch that reaches every parameter."""
  side, length = parts.image_size, 2
  extras = {}
  if parts.config.kind == "vlm":
    small = Config("", parts.config, DataConfig(rows=1, row_length=length), ())
    kind = CONNECTORS.get(parts.config.connector.kind)
    extras = {name: jnp.zeros(spec.shape, spec.dtype)
              for name, spec in kind.extras(small).items()}
  ints = jnp.zeros((1, length), jnp.int32)
  return dict(
      tokens=ints, targets=ints, positions=ints, segment_ids=ints + 1,
      visual_index=ints - 1, loss_weights=ints.astype(jnp.float32),
      images=jnp.zeros((1, 1, side, side, 3), jnp.uint8),
      image_segment_ids=jnp.ones((1, 1), jnp.int32),
      image_boxes=jnp.zeros((1, 1, 4), jnp.int32), extras=extras)


def param_shapes(parts: Parts, mesh: Mesh, patterns: Iterable[str] = (),
                 ) -> dict[str, jax.ShapeDtypeStruct]:
  """{path: shape, dtype and sharding}, without making any array.

  Args:
    parts: of the model.
    mesh: of the run.
    patterns: what any stage trains, which has f32 masters; the rest is of
      `config.frozen_dtype`.

  Raises:
    ValueError: a large model of which too much would lie on every device.
  """
  bare = parts.make(Layout())
  tree = jax.eval_shape(
      lambda: bare.init(jax.random.key(0), _one_row(parts))["params"])
  patterns = list(patterns)
  frozen = jnp.dtype(parts.config.frozen_dtype)
  flat = {
      path: jax.ShapeDtypeStruct(
          leaf.shape, jnp.float32 if any(covers(p, path) for p in patterns)
          else frozen)
      for path, leaf in flatten(tree).items()}
  if sum(math.prod(s.shape) for s in flat.values()) > _SMALL:
    check_sharded(flat, mesh)
  where = shardings(flat, mesh)
  return {path: s.update(sharding=where[path]) for path, s in flat.items()}


def init_params(
    parts: Parts, mesh: Mesh, patterns: Iterable[str], key: jax.Array,
) -> tuple[dict[str, Any], dict[str, str]]:
  """All parameters, each in its shards, and where each came from.

  Args:
    parts: of the model.
    mesh: of the run.
    patterns: what any stage trains, see `param_shapes`.
    key: for what is drawn.

  Returns:
    (nested parameters, {path: "file:key", "copy of PATH" or "initialised"}).

  Raises:
    InputError: a checkpoint with missing, unexpected or mis-shaped keys, or a
      published model whose weights are not given.
  """
  for name in ("tower", "decoder"):
    part = getattr(parts.config, name)
    if part.published and not part.weights:
      raise InputError(
          f"model.{name}.published = {part.published!r} says sizes alone; to "
          f"train, set model.{name}.weights to a folder that holds "
          f"{PUBLISHED[part.published].repo}")
  shapes = param_shapes(parts, mesh, patterns)
  params: dict[str, jax.Array] = {}
  origins: dict[str, str] = {}
  prefixes = {name: f"{name}/" if name else "" for name in parts.specs}
  loaded, found = load_parts(parts.specs, {
      name: spec.held(shapes, prefixes[name])
      for name, spec in parts.specs.items()})
  for name, prefix in prefixes.items():
    params |= {prefix + path: x for path, x in loaded[name].items()}
    origins |= {prefix + path: o for path, o in found[name].items()}

  drawn = [p for p in shapes if p not in params and p not in parts.copies]
  if drawn:
    bare = parts.make(Layout())

    def draw(key: jax.Array) -> dict[str, jax.Array]:
      # What is not asked for is never computed: the compiler drops it.
      flat = flatten(bare.init(key, _one_row(parts))["params"])
      return {path: flat[path].astype(shapes[path].dtype) for path in drawn}

    params |= jax.jit(draw, out_shardings={
        p: shapes[p].sharding for p in drawn})(key)
    origins |= dict.fromkeys(drawn, "initialised")
  for path, source in parts.copies.items():
    if path in params:  # the connector has weights of its own
      continue
    copy = jax.jit(
        lambda x, dtype=shapes[path].dtype: jnp.array(x, dtype, copy=True),
        out_shardings=shapes[path].sharding)
    params[path] = copy(params[source])
    origins[path] = f"copy of {source}"
  return unflatten({p: params[p] for p in shapes}), origins
