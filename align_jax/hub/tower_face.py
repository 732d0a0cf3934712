"""A pretrained tower as a function, for notebooks and scripts.

  tower = load_tower("pkg:align_jax/weights/mini_clip")
  features = tower(["a.png", picture])           # f[2,P,C]
  pixels = tower.process(["a.png", picture])     # f32[2,H,W,3], normalised
  features = tower(pixels)                       # the same
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.data.images import ImageReader, listed
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

  def __call__(self, images: Any) -> jax.Array:
    """Images -> features f[B,P,C].

    Args:
      images: normalised pixels f[B,H,W,3]; anything else, uint8 arrays too,
        goes through `process` first.

    Raises:
      BadImage: see `process`.
      ValueError: pixels of another shape than the tower reads, or none.
    """
    dtype = getattr(images, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
      images = self.process(images)
    return self._features(self.params, jnp.asarray(images))

  def process(self, images: Any) -> jax.Array:
    """Pictures -> normalised pixels f32[B,H,W,3].

    Args:
      images: one or several, each a path, an encoded file's bytes, a PIL
        image or an array u8[H,W,3]; or one array u8[B,H,W,3].

    Raises:
      BadImage: one is missing or broken, or an array of another kind.
      ValueError: there is none.
    """
    read = [self._reader(image) for image in listed(images)]
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
