"""A pretrained tower as a function, for notebooks and scripts.

  tower = load_tower("pkg:align_jax/weights/mini_clip")
  features = tower(["a.png", picture])           # f[2,P,C]
  pixels = tower.process(["a.png", picture])     # f32[2,H,W,3], normalised
  features = tower(pixels, layer=-2)             # of the layer before the last

Where the checkpoint holds a text tower too, both sides meet:

  words = tower.text(["cat", "dog"], ["a photo of a {}"])   # f32[2,E]
  tower.image_embeds(pixels) @ words.T                      # cosines f32[2,2]
  tower.patch_embeds(pixels, "maskclip") @ words.T          # f32[2,P,2]
"""

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from align_jax.config import MeshConfig
from align_jax.data.images import ImageReader, listed
from align_jax.errors import InputError
from align_jax.hub.pretrained import (
  Spec,
  load_params,
  load_processor,
  load_tokenizer,
  processor_fields,
  read_spec,
)
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.parallel.rules import shardings
from align_jax.towers import TOWERS
from align_jax.towers.clip import DualConfig, DualEncoder
from align_jax.towers.pixels import normalise


class Tower:
  """What `load_tower` gives.

  Attributes:
    spec: what was loaded, from where.
    config: sizes and pixel statistics, such as a `ViTConfig`.
    module: the Linen module, whose features this gives.
    params: its parameters.
    provenance: path of a parameter -> "file:key" it was read from.
  """

  def __init__(self, spec: Spec, module: Any):
    self.spec, self.config, self.module = spec, spec.config, module
    side = self.config.image_size
    pixels = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    pooled = getattr(self.config, "head", False)
    self.params, self.provenance = _load(
        spec, module, pixels, method="pooled" if pooled else None)
    self._compiled: dict[Any, Any] = {}

  def __call__(self, images: Any, layer: int | None = None,
               with_class_token: bool | None = None) -> jax.Array:
    """Images -> features f[B,P,C].

    Args:
      images: normalised pixels f[B,H,W,3]; anything else, uint8 arrays too,
        goes through `process` first.
      layer: feature layer, counted from the end; None as when loaded.
      with_class_token: whether features keep the class token, as the first;
        None as when loaded.

    Raises:
      BadImage: see `process`.
      ValueError: pixels of another shape than the tower reads, or none; a
        layer or a class token that is not there.
    """
    module = self.module.clone(
        layer=self.module.layer if layer is None else layer,
        class_token=(self.module.class_token if with_class_token is None
                     else with_class_token))
    return self._apply(module, self.params, (self._pixels(images),))

  def pooled(self, images: Any) -> jax.Array:
    """Images -> f[B,C], the reference's `pooler_output`.

    Raises:
      ValueError: the tower has neither class token nor pooling head.
    """
    return self._apply(self.module, self.params, (self._pixels(images),),
                       method="pooled")

  def process(self, images: Any) -> jax.Array:
    """Pictures -> normalised pixels f32[B,H,W,3].

    Args:
      images: one or several, each a path, an encoded file's bytes, a PIL
        image or an array u8[H,W,3]; or one array u8[B,H,W,3].

    Raises:
      BadImage: one is missing or broken, or an array of another kind.
      ValueError: there is none.
    """
    read = [self.reader(image) for image in listed(images)]
    if not read:
      raise ValueError("no images to process")
    return self.normalised(read)

  def normalised(self, read: Sequence[tuple[np.ndarray, np.ndarray]],
                 ) -> jax.Array:
    """What `reader` gave of B images -> normalised pixels f32[B,H,W,3]."""
    pixels, boxes = map(np.stack, zip(*read))
    return normalise(jnp.asarray(pixels), jnp.asarray(boxes),
                     self.config.mean, self.config.std)

  @functools.cached_property
  def joint(self) -> tuple[DualEncoder, Any]:
    """Both towers with their parameters, read on first use.

    Raises:
      InputError: the checkpoint holds no text tower.
    """
    whole = read_spec(self.spec.path)
    if not isinstance(whole.config, DualConfig):
      raise InputError(
          f"{self.spec.path} holds {self.spec.raw.get('model_type')!r}, which "
          "has no text tower: texts and images meet in a whole model alone "
          "(CLIPModel, SiglipModel)")
    module = whole.config.make(dtype=self.module.dtype,
                               layout=self.module.layout)
    side, row = self.config.image_size, jnp.zeros((1, 1), jnp.int32)
    params, self.provenance = _load(whole, module, dict(
        images=jnp.zeros((1, 1, side, side, 3), jnp.uint8),
        image_boxes=jnp.zeros((1, 1, 4), jnp.int32), tokens=row,
        segment_ids=row))
    self.params = params["tower"]
    return module, params

  @functools.cached_property
  def tokenizer(self) -> Any:
    """The transformers tokenizer beside the weights."""
    return load_tokenizer(self.spec)

  def tokens(self, strings: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts as the text tower was trained to see them.

    Returns:
      tokens i32[B,L] and segment_ids i32[B,L], 0 for padding.

    Raises:
      InputError: texts longer than the tower reads; nothing is cut off.
    """
    config = self.joint[0].config.text
    ids = self.tokenizer(list(strings))["input_ids"]
    long = [f"{text!r} has {len(row)}" for text, row in zip(strings, ids)
            if len(row) > config.max_positions]
    if long:
      raise InputError(f"texts of more than {config.max_positions} tokens: "
                       + "; ".join(long[:5]))
    length = config.max_positions
    if config.pool == "eos":  # multiples of 8, so that few shapes are compiled
      length = min(length, -(-max(map(len, ids)) // 8) * 8)
    rows = self.tokenizer.pad({"input_ids": ids}, padding="max_length",
                              max_length=length, return_tensors="np",
                              return_attention_mask=True)
    return (rows["input_ids"].astype(np.int32),
            rows["attention_mask"].astype(np.int32))

  def text(self, strings: str | Sequence[str],
           templates: Sequence[str] = ("{}",)) -> jax.Array:
    """Texts -> f32[B,E], of unit length.

    Args:
      strings: texts, or what goes into the templates.
      templates: each with a "{}"; the unit embeddings of several are averaged
        and brought back to unit length (2103.00020, 3.1.4).

    Raises:
      InputError: no text tower, or texts that are too long.
      ValueError: no text, or a template without "{}".
    """
    strings = [strings] if isinstance(strings, str) else list(strings)
    if not strings or not templates:
      raise ValueError("no texts to embed")
    if bare := [t for t in templates if "{}" not in t]:
      raise ValueError(f"templates without {{}}: {', '.join(map(repr, bare))}")
    module, params = self.joint
    total = 0.0
    for template in templates:
      total += self._apply(
          module, params,
          self.tokens([template.replace("{}", text) for text in strings]),
          method="text_embeds")
    return total / jnp.linalg.norm(total, axis=-1, keepdims=True)

  def image_embeds(self, images: Any) -> jax.Array:
    """Images -> f32[B,E], of unit length, where texts are too.

    Raises:
      InputError: no text tower.
    """
    module, params = self.joint
    return self._apply(module, params, (self._pixels(images),),
                       method="image_embeds")

  def patch_embeds(self, images: Any, how: str, layer: int = -1,
                   blocks: int | None = None) -> jax.Array:
    """Images -> f32[B,P,E], each patch of unit length, where texts are.

    Args:
      images: as in a call.
      how: "raw", "maskclip", "surgery" (CLIP) or "map_head" (SigLIP); see
        `ViT.dense`. Cosines of "raw" rank the background first: negate them.
      layer: the last layer to run, counted from the end.
      blocks: layers that "surgery" changes.

    Raises:
      InputError: no text tower.
      ValueError: a way that this tower does not have.
    """
    module, params = self.joint
    return self._apply(module, params, (self._pixels(images),),
                       method="patch_embeds", how=how, layer=layer,
                       blocks=blocks)

  def cropping_as(self, source: str | Path) -> "Tower":
    """The same tower, which sees of a picture what another one's sees.

    Args:
      source: folder or hub id of that one, whose image processor resizes and
        crops; colours are normalised as this tower wants them.

    Raises:
      InputError: it has no image processor.
    """
    other = copy.copy(self)
    other.reader = ImageReader(load_processor(source), self.config.image_size)
    return other

  @functools.cached_property
  def reader(self) -> ImageReader:
    """A picture -> what this tower sees of it, u8[H,W,3] with its box."""
    processor = (load_processor(self.spec)
                 if processor_fields(self.spec.path) else None)
    return ImageReader(processor, self.config.image_size)

  def _pixels(self, images: Any) -> jax.Array:
    dtype = getattr(images, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
      images = self.process(images)
    return jnp.asarray(images)

  def _apply(self, module: Any, params: Any, inputs: tuple[Any, ...],
             **options: Any) -> jax.Array:
    """One compilation for a method, its options and the inputs' shapes."""
    key = (type(module), getattr(module, "layer", None),
           getattr(module, "class_token", None), *sorted(options.items()))
    if key not in self._compiled:
      self._compiled[key] = jax.jit(lambda params, inputs: module.apply(
          {"params": params}, *inputs, **options))
    return self._compiled[key](params, inputs)


def _load(spec: Spec, module: Any, inputs: Any,
          method: str | None = None) -> tuple[Any, dict[str, str]]:
  """A module's parameters in its dtype, where its layout wants them.

  Scalars, such as a temperature, keep all their digits.
  """
  shapes = jax.eval_shape(
      lambda x: module.clone(layout=Layout()).init(
          jax.random.key(0), x, method=method), inputs)["params"]
  flat = {path: leaf if leaf.shape == () else jax.ShapeDtypeStruct(
              leaf.shape, module.dtype)
          for path, leaf in flatten_dict(shapes, sep="/").items()}
  if mesh := module.layout.mesh:
    where = shardings(flat, mesh)
    flat = {path: s.update(sharding=where[path]) for path, s in flat.items()}
  params, origins = load_params(spec, unflatten_dict(flat, sep="/"))
  return params, origins


def load_tower(weights: str | Path, dtype: Any = jnp.float32,
               mesh: Mesh | MeshConfig | None = None, layer: int = -1,
               with_class_token: bool = False) -> Tower:
  """The vision tower of a checkpoint in Hugging Face's layout.

  Args:
    weights: a folder, or what else `hub/locate.py` takes. A tower alone
      (CLIPVisionModel, SiglipVisionModel, Dinov2Model,
      InstructBlipVisionModel ...) or a model that has one (CLIPModel,
      SiglipModel, LLaVA, InstructBLIP).
    dtype: of the parameters and of the computation.
    mesh: where parameters lie and images are spread; None is one device.
    layer: feature layer, counted from the end: -1 the last, -2 the one before.
    with_class_token: whether features keep the class token, as the first.

  Raises:
    InputError: nothing there, something else, or weights that do not fit.
  """
  spec = read_spec(weights, part="tower")
  if spec.kind not in TOWERS:
    raise InputError(f"{weights} holds a {spec.kind!r} model, which is no "
                     f"vision tower (known: {', '.join(TOWERS.names())})")
  if isinstance(mesh, MeshConfig):
    mesh = make_mesh(mesh)
  return Tower(spec, spec.config.make(
      layer=layer, class_token=with_class_token, dtype=dtype,
      layout=Layout(mesh)))
