"""A pretrained tower as a function, for notebooks and scripts.

  tower = load_tower("pkg:align_jax/weights/mini_clip")
  features = tower(tower.process([picture]))     # f[1,P,C]
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.data.images import ImageReader
from align_jax.errors import InputError
from align_jax.hub.pretrained import load_params, load_processor, read_spec
from align_jax.towers import TOWERS
from align_jax.towers.pixels import normalise


class Tower:
  """What `load_tower` gives.

  Attributes:
    config: sizes and pixel statistics, such as a `ViTConfig`.
    module: the Linen module, whose features this gives.
    params: its parameters.
    provenance: path of a parameter -> "file:key" it was read from.
  """

  def __init__(self, config: Any, module: Any, params: Any,
               provenance: dict[str, str], processor: Any):
    self.config = config
    self.module = module
    self.params = params
    self.provenance = provenance
    self._reader = ImageReader(processor, config.image_size)
    self._features = jax.jit(
        lambda params, pixels: module.apply({"params": params}, pixels))

  def __call__(self, pixels: jax.Array) -> jax.Array:
    """Normalised pixels f[B,H,W,3] -> features f[B,P,C].

    Raises:
      ValueError: pixels of another shape than the tower reads.
    """
    return self._features(self.params, jnp.asarray(pixels))

  def process(self, images: Iterable[Any]) -> jax.Array:
    """Pictures -> normalised pixels f32[B,H,W,3].

    Args:
      images: each a PIL image, a path or an encoded file's bytes. One picture
        alone is taken as a list of one.

    Raises:
      BadImage: one is missing or broken.
      ValueError: there is none.
    """
    if hasattr(images, "resize") or isinstance(images, (str, Path, bytes)):
      images = [images]
    read = [self._reader(image) for image in images]
    if not read:
      raise ValueError("no images to process")
    pixels, boxes = map(np.stack, zip(*read))
    return normalise(jnp.asarray(pixels), jnp.asarray(boxes),
                     self.config.mean, self.config.std)


def load_tower(weights: str | Path, dtype: Any = jnp.float32, layer: int = -1,
               class_token: bool = False) -> Tower:
  """The vision tower of a checkpoint in Hugging Face's layout.

  Args:
    weights: a folder, or `pkg:PACKAGE/PATH`. A tower alone (CLIPVisionModel,
      SiglipVisionModel) or a model that has one (CLIPModel, SiglipModel,
      LLaVA).
    dtype: of the computation; parameters are f32.
    layer: feature layer, counted from the end: -1 the last, -2 the one before.
    class_token: whether features keep the class token, as the first.

  Raises:
    InputError: nothing there, something else, or weights that do not fit.
  """
  spec = read_spec(weights, part="tower")
  if spec.kind not in TOWERS:
    raise InputError(f"{weights} holds a {spec.kind!r} model, which is no "
                     f"vision tower (known: {', '.join(TOWERS.names())})")
  config = spec.config
  module = config.make(layer=layer, class_token=class_token, dtype=dtype)
  side = config.image_size
  shapes = jax.eval_shape(
      module.init, jax.random.key(0),
      jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))["params"]
  params, provenance = load_params(spec, shapes)
  has_processor = (spec.path / "preprocessor_config.json").is_file()
  processor = load_processor(spec) if has_processor else None
  return Tower(config, module, params, provenance, processor)
