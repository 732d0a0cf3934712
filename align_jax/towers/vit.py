"""One vision transformer; CLIP and SigLIP are configs of it.

  pixels f[I,H,W,3] -> patches -> (class token) -> + positions -> (pre-norm)
    -> layers -> features f[I,P,C]

A feature layer is counted from the end, as in LLaVA and as in the reference
implementation's `hidden_states`: -1 is what the last layer gives, -2 what the
one before gives, and layers after it are not computed.

Where the norm after the last layer goes differs (`ViTConfig.post_norm`):
  "pooled"    CLIP. It belongs to the pooled class token alone; features are
              taken before it, at every layer.
  "features"  SigLIP. It ends the tower: features of layer -1 are the
              reference's `last_hidden_state`, normed. Those of layer -2 and
              further down are not normed.
  "none"      there is none.

Sources: ViT 2010.11929, CLIP 2103.00020, SigLIP 2303.15343.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.ops.cost import Product
from align_jax.ops.norms import layer_norm
from align_jax.ops.stack import LayerStack
from align_jax.parallel.layout import AXES, Layout
from align_jax.registry import nearest
from align_jax.towers.block import ACTIVATIONS, Block

POST_NORMS = ("none", "pooled", "features")


@dataclasses.dataclass(frozen=True)
class ViTConfig:
  """Sizes and peculiarities of a vision transformer.

  Attributes:
    image_size: side of the square input. Where `patch_size` does not divide
      it the last pixels are not seen, as in SigLIP-so400m (384 and 14).
    width: C, a multiple of `heads`.
    activation: "quick_gelu", "gelu" or "gelu_tanh".
    class_token: whether a learnt token stands before the patches.
    patch_bias: whether the patch embedding has a bias.
    pre_norm: whether a norm stands before the first layer (CLIP).
    post_norm: "none", "pooled" or "features"; see the module's docstring.
    mean: of each colour, with which pixels were normalised in training.
    std: likewise.

  Raises:
    ValueError: sizes that do not fit together; all faults at once.
  """
  image_size: int
  patch_size: int
  width: int
  layers: int
  heads: int
  mlp_width: int
  activation: str = "quick_gelu"
  class_token: bool = True
  patch_bias: bool = False
  pre_norm: bool = True
  post_norm: str = "pooled"
  norm_eps: float = 1e-5
  mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
  std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

  def __post_init__(self) -> None:
    object.__setattr__(self, "mean", tuple(self.mean))
    object.__setattr__(self, "std", tuple(self.std))
    faults = [
        f"{name} is {getattr(self, name)}, it must be at least 1"
        for name in ("image_size", "patch_size", "width", "layers", "heads",
                     "mlp_width") if getattr(self, name) < 1]
    if not faults and self.image_size < self.patch_size:
      faults.append(f"image_size {self.image_size} is smaller than "
                    f"patch_size {self.patch_size}")
    if not faults and self.width % self.heads:
      faults.append(f"width {self.width} is no multiple of heads {self.heads}")
    for name, allowed in (("activation", ACTIVATIONS),
                          ("post_norm", POST_NORMS)):
      if (value := getattr(self, name)) not in allowed:
        faults.append(f"unknown {name} {value!r}{nearest(value, allowed)} "
                      f"(known: {', '.join(allowed)})")
    if self.post_norm == "pooled" and not self.class_token:
      faults.append("post_norm 'pooled' norms the class token, and there is "
                    "none (class_token is False)")
    for name in ("mean", "std"):
      if len(getattr(self, name)) != 3:
        faults.append(f"{name} has {len(getattr(self, name))} values, one for "
                      "each of 3 colours is needed")
    if faults:
      raise ValueError("vision tower: " + "; ".join(faults))

  @property
  def patches(self) -> int:
    """P, the patches of an image."""
    return (self.image_size // self.patch_size) ** 2

  def products(self, layer: int = -1) -> list[Product]:
    """Matrix products of one image, up to a feature layer."""
    side, c, f = self.patch_size, self.width, self.mlp_width
    n = self.patches + self.class_token
    found = [Product(2.0 * self.patches * 3 * side * side * c, "patch_ijac")]
    for i in range(self.layers + 1 + layer):
      found += [Product(2.0 * n * c * c, f"layers/{x}_chk", i) for x in "qkv"]
      found += [Product(4.0 * n * n * c, "", i),
                Product(2.0 * n * c * c, "layers/o_hkc", i),
                Product(2.0 * n * c * f, "layers/up_cf", i),
                Product(2.0 * n * f * c, "layers/down_fc", i)]
    return found

  def make(self, **fields: Any) -> "ViT":
    """The module; `fields` are those of `ViT` beside its config."""
    return ViT(self, **fields)


def clip(**sizes: Any) -> ViTConfig:
  """CLIP: class token, pre-norm, quick-GELU, OpenAI's pixel statistics."""
  return ViTConfig(**sizes)


def siglip(**sizes: Any) -> ViTConfig:
  """SigLIP: no class token, patch bias, tanh-GELU, norm after the last."""
  peculiar = dict(
      activation="gelu_tanh", class_token=False, patch_bias=True,
      pre_norm=False, post_norm="features", norm_eps=1e-6,
      mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
  return ViTConfig(**(peculiar | sizes))


class ViT(nn.Module):
  """pixels f[I,H,W,3], normalised -> features f[I,P,C].

  Parameters (i, j in a patch, a colour, p places, c width):
    patch_ijac (patch_bias_c) (class_c) position_pc
    (pre_norm_scale_c pre_norm_bias_c) (post_norm_scale_c post_norm_bias_c)
    layers/...  as in `Block`, stacked

  The class token, where there is one, has the first place of `position_pc`.
  Inside, images are laid over every axis of the mesh; a count that the mesh
  does not divide is padded and cut off again.

  Attributes:
    layer: feature layer, counted from the end.
    class_token: whether features keep the class token, as the first "patch".
  """
  config: ViTConfig
  layer: int = -1
  class_token: bool = False
  dtype: Any = jnp.float32
  remat: str = "none"
  layout: Layout = Layout()

  def setup(self) -> None:
    c, config = self.config.width, self.config
    normal, ones, zeros = (nn.initializers.normal, nn.initializers.ones,
                           nn.initializers.zeros)
    side = config.patch_size
    if self.class_token and not config.class_token:
      raise ValueError("features cannot keep the class token: this tower has "
                       "none (set class_token=False)")
    if not -config.layers - 1 <= self.layer <= -1:
      raise ValueError(
          f"feature layer {self.layer}: layers are counted from the end, from "
          f"-1 (the last) to {-config.layers - 1} (the embedded patches)")
    self.patch_ijac = self.param(
        "patch_ijac", normal((3 * side * side) ** -0.5), (side, side, 3, c))
    if config.patch_bias:
      self.patch_bias_c = self.param("patch_bias_c", zeros, (c,))
    if config.class_token:
      self.class_c = self.param("class_c", normal(c ** -0.5), (c,))
    self.position_pc = self.param(
        "position_pc", normal(c ** -0.5),
        (config.patches + config.class_token, c))
    for name, present in (("pre_norm", config.pre_norm),
                          ("post_norm", config.post_norm != "none")):
      if present:
        setattr(self, f"{name}_scale_c",
                self.param(f"{name}_scale_c", ones, (c,)))
        setattr(self, f"{name}_bias_c",
                self.param(f"{name}_bias_c", zeros, (c,)))
    self.layers = LayerStack(
        Block(width=c, heads=config.heads, mlp_width=config.mlp_width,
              depth=config.layers, activation=config.activation,
              norm_eps=config.norm_eps, axes="ipc", dtype=self.dtype,
              layout=self.layout, parent=None),
        depth=config.layers, remat=self.remat)

  def __call__(self, pixels: jax.Array) -> jax.Array:
    """f[I,H,W,3] -> f[I,P,C], or f[I,1+P,C] when the class token is kept.

    Raises:
      ValueError: pixels of another shape than the tower was made for.
    """
    x = self._hidden(pixels, self.layer)
    if self.layer == -1 and self.config.post_norm == "features":
      x = self._norm("post_norm", x)
    cut = self.config.class_token and not self.class_token
    return x[:, 1:] if cut else x

  def pooled(self, pixels: jax.Array) -> jax.Array:
    """f[I,H,W,3] -> f[I,C]: the class token after all layers and the norm.

    Raises:
      ValueError: the tower has no class token.
    """
    if not self.config.class_token:
      raise ValueError("this tower has no class token to pool")
    x = self.layout.constrain(self._hidden(pixels, -1)[:, 0], "ic")
    return x if self.config.post_norm == "none" else self._norm("post_norm", x)

  def _norm(self, name: str, x: jax.Array) -> jax.Array:
    return layer_norm(x, getattr(self, f"{name}_scale_c"),
                      getattr(self, f"{name}_bias_c"), self.config.norm_eps)

  def _hidden(self, pixels: jax.Array, layer: int) -> jax.Array:
    """f[I,H,W,3] -> f[I,P,C] with the class token, after `layer`."""
    config, side = self.config, self.config.patch_size
    expected = (config.image_size, config.image_size, 3)
    if pixels.ndim != 4 or pixels.shape[1:] != expected:
      raise ValueError(
          f"this tower reads pixels f[I,{config.image_size},"
          f"{config.image_size},3], not {list(pixels.shape)}; resize on the "
          "host with the tower's image processor")
    images = pixels.shape[0]
    spare = -images % self.layout.shards(AXES)
    pixels = jnp.pad(pixels, ((0, spare), (0, 0), (0, 0), (0, 0)))
    pixels = self.layout.constrain(pixels.astype(self.dtype), "iyxa")
    grid = config.image_size // side
    pixels = pixels[:, :grid * side, :grid * side]
    x = pixels.reshape(-1, grid, side, grid, side, 3)
    x = jnp.einsum("nyixja,ijac->nyxc", x, self.patch_ijac.astype(self.dtype))
    if config.patch_bias:
      x = x + self.patch_bias_c.astype(self.dtype)
    x = x.reshape(-1, config.patches, config.width)
    if config.class_token:
      first = jnp.broadcast_to(self.class_c.astype(self.dtype),
                               (x.shape[0], 1, config.width))
      x = jnp.concatenate([first, x], axis=1)
    x = x + self.position_pc.astype(self.dtype)
    if config.pre_norm:
      x = self._norm("pre_norm", x)
    x, _ = self.layers(x, last=config.layers + 1 + layer)
    return x[:images]
