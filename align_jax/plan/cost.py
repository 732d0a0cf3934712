"""Operations of a training step, by part, before anything is compiled.

The convention, one for plans and benchmarks (a product of n multiplications
counts 2n):

  forward            what the result needs; causal attention counts half of
                     its square
  gradients          one more product for a trained parameter, one more for
                     an input that anything trained lies before
  head               on the labelled positions, where logits are computed
  not counted        recomputation, masked halves, norms, softmax, look-ups

Recomputation that the policy declares, and masked halves, are told apart:
a program does them, but they are no work of the model.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from align_jax.build import Parts
from align_jax.config import Config, StageConfig
from align_jax.connectors import CONNECTORS
from align_jax.connectors.protocol import Context
from align_jax.data.batch import batch_spec
from align_jax.objectives import OBJECTIVES, make_objective
from align_jax.ops.attention import choose
from align_jax.ops.cost import Product
from align_jax.parallel.layout import Layout
from align_jax.plan.trace import traced
from align_jax.train.job import declared
from align_jax.train.select import base, cut, unflatten

PARTS = ("tower", "connector", "decoder", "head")


@dataclasses.dataclass(frozen=True)
class Cost:
  """FLOPs of one step of one part, over all devices.

  Attributes:
    model: by the convention above.
    recomputed: what the policy of rematerialisation declares to compute
      again.
    masked: what the plain form of attention does beside.
  """
  model: float
  recomputed: float
  masked: float


def step_cost(config: Config, stage: StageConfig, parts: Parts,
              shapes: Mapping[str, Any],
              trained: Iterable[str]) -> dict[str, Cost]:
  """The cost of a stage's step, by part.

  Args:
    config: of the run.
    stage: of the config.
    parts: of its model.
    shapes: {path: shape} of all parameters.
    trained: keys of the stage's trainables.
  """
  products = forward_products(config, stage, parts, shapes)
  return training_cost(products, list(trained), shapes, config.model.remat)


def forward_products(config: Config, stage: StageConfig, parts: Parts,
                     shapes: Mapping[str, Any],
                     ) -> dict[str, list[Product]]:
  """What the forward pass multiplies for a whole batch, by part, in order."""
  rows, slots = config.data.rows, config.data.images_per_row
  if config.model.kind != "vlm":
    return _whole(config, stage, parts, shapes)
  model = parts.model
  tower = _tower(config, parts, shapes)
  decoder = _times(_by_form(
      model.decoder.config.products(config.data.row_length), parts,
      config.data.row_length), rows)
  if layer := model.connector.feedback_layer:
    # Between two layers of the decoder, so that only those above it pass on
    # gradients for its sake.
    own = lambda path: path if path[:1] in ("", "/") else f"/connector/{path}"
    again = [p._replace(param=own(p.param)) for p in _connector(
        config, parts, shapes, again=True)]
    at = next((i for i, p in enumerate(decoder)
               if p.layer is not None and p.layer >= layer), len(decoder))
    decoder[at:at] = _times(again, rows * slots)
  return {
      "tower": _times(tower, rows * slots),
      "connector": _times(_connector(config, parts, shapes), rows * slots),
      "decoder": decoder,
      "head": [p for name in stage.objectives
               for p in _objective(name, config, stage, parts, shapes)],
  }


def connector_cost(config: Config, parts: Parts,
                   shapes: Mapping[str, Any]) -> dict[str, Any]:
  """What a connector makes of an image, and at what cost; {} without one.

  Returns:
    kind; tokens_out, T; parameters; flops, of an image's forward pass.
  """
  if config.model.kind != "vlm":
    return {}
  return {"kind": config.model.connector.kind,
          "tokens_out": parts.tokens_per_image,
          "parameters": sum(math.prod(s.shape) for path, s in shapes.items()
                            if path.startswith("connector/")),
          "flops": sum(p.flops for p in _connector(config, parts, shapes))}


def attention_form(parts: Parts, length: int) -> str:
  """What the decoder's attention runs as, in training."""
  model = parts.model
  c = model.decoder.config
  return choose(
      model.layout, length=length, keys=length, width=c.head_width,
      dtype=model.decoder.dtype, segments=True, causal=True, packed=True,
      static_window=True, window=any(getattr(c, "windows", ())),
      soft_cap=bool(getattr(c, "attn_soft_cap", None)))


def _by_form(products: Iterable[Product], parts: Parts,
             length: int) -> list[Product]:
  """Attention's products as its form does them.

  Splash leaves out blocks that are masked as a whole. Its backward pass is of
  two kernels with 7 products, of which 3 are scores and their gradients over
  again, where the model has 4.
  """
  if attention_form(parts, length) != "splash":
    return list(products)
  beside = 1 / max(length // 512, 1)  # halves of the blocks on the diagonal
  return [p if p.param else p._replace(
      masked=p.flops * beside, again=1.5 * p.flops * (1 + beside), fused=True)
          for p in products]


def _times(products: Iterable[Product], count: float) -> list[Product]:
  return [p._replace(flops=p.flops * count, masked=p.masked * count,
                     again=p.again * count) for p in products]


def _under(prefix: str, shapes: Mapping[str, Any]) -> dict[str, Any]:
  return {path.removeprefix(prefix): jax.ShapeDtypeStruct(s.shape, s.dtype)
          for path, s in shapes.items() if path.startswith(prefix)}


def _tower(config: Config, parts: Parts,
           shapes: Mapping[str, Any]) -> list[Product]:
  """Of one image."""
  module, sizes = parts.make(Layout()).tower, parts.model.tower.config
  if hasattr(sizes, "products"):
    return sizes.products(config.model.tower.layer)
  side = parts.image_size
  pixels = jax.ShapeDtypeStruct((1, side, side, 3), module.dtype)
  return traced(
      lambda params, x: module.apply({"params": unflatten(params)}, x),
      _under("tower/", shapes), pixels)


def _connector(config: Config, parts: Parts, shapes: Mapping[str, Any],
               again: bool = False) -> list[Product]:
  """Of one image; or of another look at it, that the decoder asked for."""
  model = parts.make(Layout())
  decoder, tower = model.decoder.config, model.tower
  kind = CONNECTORS.get(config.model.connector.kind)
  patches = tower.config.patches + config.model.tower.class_token
  said = kind.products(patches, tower.config.width, decoder.width,
                       decoder.vocab_size, **config.model.connector.options)
  if said is not None:
    return said
  slots = config.data.images_per_row
  one = dataclasses.replace(config, data=dataclasses.replace(
      config.data, rows=1))
  extras = kind.extras(one)
  dtype = model.connector.dtype
  features = jax.ShapeDtypeStruct(
      (1, slots, patches, tower.config.width), dtype)
  table = jax.ShapeDtypeStruct((decoder.vocab_size, decoder.width), dtype)
  ids = jax.ShapeDtypeStruct((1, slots), jnp.int32)
  asked = {"asked": jax.ShapeDtypeStruct(
      (1, slots, decoder.width), dtype)} if again else {}

  def connect(params, features, ids, extras, asked):
    own = {k: v for k, v in params.items() if not k.startswith("/")}
    context = Context(params["/decoder/embed_vd"], ids, extras)
    return model.connector.apply(
        {"params": unflatten(own)}, features, ids > 0, context, **asked).tokens

  row = traced(connect, _under("connector/", shapes) | {
      "/decoder/embed_vd": table}, features, ids, extras, asked)
  return _times(row, 1 / max(slots, 1))


def _objective(name: str, config: Config, stage: StageConfig, parts: Parts,
               shapes: Mapping[str, Any]) -> list[Product]:
  """Of the whole batch."""
  kind = OBJECTIVES.get(name)
  if hasattr(kind, "products"):
    return _times(kind.products(config, parts.model.decoder.config),
                  config.data.rows)
  objective = make_objective(name, config, planned=True)
  model = parts.make(Layout())
  batch = batch_spec(config.data, parts.image_size, declared(config, stage))
  params = unflatten(_under("", shapes))
  outputs = jax.eval_shape(
      lambda p, b: model.apply({"params": p}, b), params, batch)
  # The tables are followed as parameters, all other outputs as data.
  tables = {"/decoder/" + key: outputs[key] for key in ("head_vd",)
            if key in outputs}
  head = getattr(parts.model.decoder.config, "tied_head", False)
  keys = jax.eval_shape(
      lambda: jax.random.split(jax.random.key(0), config.data.rows))

  # A number of the decoder's config, which no tracer may stand for.
  fixed = {"logit_soft_cap": parts.model.decoder.config.logit_soft_cap} if (
      outputs.pop("logit_soft_cap", None) is not None) else {}

  def loss(tables, outputs, batch, keys):
    outputs = outputs | fixed | {
        k.rsplit("/", 1)[1]: v for k, v in tables.items()}
    return objective(outputs, batch, keys, Layout())

  rest = {k: v for k, v in outputs.items() if "/decoder/" + k not in tables}
  found = traced(loss, tables, rest, batch, keys)
  rename = {"/decoder/head_vd": "/decoder/embed_vd"} if head else {}
  return [p._replace(param=rename.get(p.param, p.param)) for p in found]


def _whole(config: Config, stage: StageConfig, parts: Parts,
           shapes: Mapping[str, Any]) -> dict[str, list[Product]]:
  """Any other model: its towers and its objectives, traced."""
  model = parts.make(Layout())
  batch = batch_spec(config.data, parts.image_size, declared(config, stage))
  one = jax.tree.map(
      lambda s: jax.ShapeDtypeStruct((1, *s.shape[1:]), s.dtype), batch)
  found = traced(
      lambda p, b: model.apply({"params": unflatten(p)}, b),
      _under("", shapes), one)
  found = _times(found, config.data.rows)
  part_of = lambda p: p.param.split("/")[0] or "text"
  names = dict.fromkeys(map(part_of, found))
  products = {name: [p._replace(param="/" + p.param if p.param else "")
                     for p in found if part_of(p) == name] for name in names}
  products["head"] = [
      p for name in stage.objectives
      for p in _objective(name, config, stage, parts, shapes)]
  return products


def training_cost(products: Mapping[str, list[Product]],
                  trained: list[str], shapes: Mapping[str, Any],
                  remat: str) -> dict[str, Cost]:
  """Forward products and their gradients, by part.

  Args:
    products: by part, in the order of the forward pass.
    trained: keys of the trainables.
    shapes: {path: shape} of all parameters.
    remat: the policy.
  """
  trains = _Trained(trained, shapes)
  costs, needs = {}, False
  for part, listed in products.items():
    model = again = masked = 0.0
    if part == "decoder":
      needs = needs or trains.has("decoder/embed_vd", None)
    started = False  # whether a gradient flows back through this stack
    last = {p.layer: i for i, p in enumerate(listed) if p.layer is not None}
    for i, p in enumerate(listed):
      path = p.param[1:] if p.param.startswith("/") else f"{part}/{p.param}"
      needs = needs or trains.small(part, p.layer)
      own = bool(p.param) and trains.has(path, p.layer)
      gradients = own + needs if p.param else 2 * needs
      model += p.flops * (1 + gradients)
      masked += p.masked * (1 + gradients)
      started = needs or own or trains.layer(part, p.layer)
      if started:
        again += p.again
        # The last product of a layer is never needed again: nothing follows.
        if p.layer is not None and last[p.layer] != i:
          share = RECOMPUTED[remat][not p.param]
          share = math.floor(share) if p.fused else share
          again += p.flops * share
          masked += p.masked * share
      needs = needs or own
    costs[part] = Cost(model, again, masked)
  return costs


# What a policy computes again of a layer, as shares: of the products with a
# parameter, and of attention's two. Where what attention gives is kept, its
# scores alone, one of the two, are computed again.
RECOMPUTED: dict[str, tuple[float, float]] = {
    "none": (0.0, 0.0), "full": (1.0, 1.0), "offload": (1.0, 1.0),
    "attention": (1.0, 0.5), "dots": (0.0, 0.5)}


class _Trained:
  """What a stage trains, asked by path and layer."""

  def __init__(self, keys: Iterable[str], shapes: Mapping[str, Any]):
    self.cuts = {base(key): cut(key) for key in keys}
    self.shapes = shapes

  def has(self, path: str, layer: int | None) -> bool:
    if path not in self.cuts:
      return False
    layers = self.cuts[path]
    return layers is None or layer is None or (
        layers.start <= layer < layers.stop)

  def layer(self, part: str, layer: int | None) -> bool:
    """Whether anything of a layer of a stack is trained."""
    return layer is not None and any(
        path.startswith(f"{part}/layers/") and self.has(path, layer)
        for path in self.cuts)

  def small(self, part: str, layer: int | None) -> bool:
    """Whether a vector (a norm's, a bias) of this layer is trained."""
    return layer is not None and any(
        path.startswith(f"{part}/layers/") and self.has(path, layer)
        and len(self.shapes[path].shape) < 3 for path in self.cuts)


def total(costs: Mapping[str, Cost]) -> Cost:
  return Cost(*(math.fsum(getattr(c, f.name) for c in costs.values())
                for f in dataclasses.fields(Cost)))
