"""One vision transformer; CLIP, SigLIP, DINOv2, EVA-CLIP, AIMv2 are configs.

  pixels f[I,H,W,3] -> patches (-> norm) -> (class token) -> + positions
    -> (registers) -> (pre-norm) -> layers -> features f[I,P,C]

A feature layer is counted from the end, as in LLaVA and as in the reference
implementation's `hidden_states`: -1 is what the last layer gives, -2 what the
one before gives, and layers after it are not computed.

Where the norm after the last layer goes differs (`ViTConfig.post_norm`):
  "pooled"    CLIP. It belongs to the pooled class token alone; features are
              taken before it, at every layer.
  "features"  SigLIP, DINOv2, AIMv2. It ends the tower: features of layer -1
              are the reference's `last_hidden_state`, normed. Those of layer
              -2 and further down are not normed.
  "both"      BLIP-2 and InstructBLIP. As "features", and the class token is
              normed once more when it is pooled.
  "none"      there is none.

Sources: ViT 2010.11929, CLIP 2103.00020, SigLIP 2303.15343, DINOv2 2304.07193
with registers 2309.16588, EVA-CLIP 2211.07636, AIMv2 2411.14402.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.ops.cost import Product
from align_jax.ops.norms import layer_norm, rms_norm
from align_jax.ops.stack import LayerStack
from align_jax.parallel.layout import AXES, Layout
from align_jax.registry import nearest
from align_jax.towers.block import ACTIVATIONS, Block
from align_jax.towers.map_head import MapHead
from align_jax.towers.positions import on_grid

POST_NORMS = ("none", "pooled", "features", "both")

# How patches get to where images and texts are compared; see `ViT.dense`.
DENSE = ("raw", "maskclip", "surgery", "map_head")


@dataclasses.dataclass(frozen=True)
class ViTConfig:
  """Sizes and peculiarities of a vision transformer.

  Attributes:
    image_size: side of the square input. Where `patch_size` does not divide
      it the last pixels are not seen, as in SigLIP-so400m (384 and 14).
    width: C, a multiple of `heads`.
    activation: "quick_gelu", "gelu", "gelu_tanh" or "silu".
    class_token: whether a learnt token stands before the patches.
    patch_bias: whether the patch embedding has a bias.
    pre_norm: whether a norm stands before the first layer (CLIP).
    post_norm: "none", "pooled", "features" or "both"; see the module's
      docstring.
    patch_norm: whether a norm stands on the embedded patches, before their
      positions are added (AIMv2).
    rms: whether all norms are RMSNorms (AIMv2).
    qkv_bias: whether queries, keys and values have biases.
    biases: whether a layer's other maps have.
    gated: whether the MLP is gated (SwiGLU, with activation "silu").
    layer_scale: whether each branch is scaled by a learnt vector (DINOv2).
    registers: learnt tokens behind the class token that are never features.
    mask_token: whether the checkpoint has a token for masked patches. It is
      kept with the others and nothing reads it.
    head: whether images are pooled by attention (SigLIP), not by the class
      token.
    learnt_size: side of the images that the position embeddings were learnt
      for, if not `image_size`: they are then resampled.
    antialias: whether that resampling smooths (DINOv2 with registers).
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
  patch_norm: bool = False
  rms: bool = False
  qkv_bias: bool = True
  biases: bool = True
  gated: bool = False
  layer_scale: bool = False
  registers: int = 0
  mask_token: bool = False
  head: bool = False
  learnt_size: int = 0
  antialias: bool = False
  mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
  std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

  def __post_init__(self) -> None:
    object.__setattr__(self, "mean", tuple(self.mean))
    object.__setattr__(self, "std", tuple(self.std))
    faults = [
        f"{name} is {getattr(self, name)}, it must be at least 1"
        for name in ("image_size", "patch_size", "width", "layers", "heads",
                     "mlp_width") if getattr(self, name) < 1]
    for name in ("image_size", "learnt_size"):
      if not faults and 0 < getattr(self, name) < self.patch_size:
        faults.append(f"{name} {getattr(self, name)} is smaller than "
                      f"patch_size {self.patch_size}")
    if self.registers < 0 or self.learnt_size < 0:
      faults.append("registers and learnt_size are at least 0")
    if not faults and self.width % self.heads:
      faults.append(f"width {self.width} is no multiple of heads {self.heads}")
    for name, allowed in (("activation", ACTIVATIONS),
                          ("post_norm", POST_NORMS)):
      if (value := getattr(self, name)) not in allowed:
        faults.append(f"unknown {name} {value!r}{nearest(value, allowed)} "
                      f"(known: {', '.join(allowed)})")
    if self.post_norm in ("pooled", "both") and not self.class_token:
      faults.append(f"post_norm {self.post_norm!r} norms the class token, and "
                    "there is none (class_token is False)")
    if self.head and self.class_token:
      faults.append("head pools by attention and class_token by a token: a "
                    "tower has one of them")
    if self.head and self.rms:
      faults.append("the pooling head has LayerNorms: not with rms")
    for name in ("mean", "std"):
      if len(getattr(self, name)) != 3:
        faults.append(f"{name} has {len(getattr(self, name))} values, one for "
                      "each of 3 colours is needed")
    if faults:
      raise ValueError("vision tower: " + "; ".join(faults))

  @property
  def grid(self) -> int:
    """Patches on a side of the image."""
    return self.image_size // self.patch_size

  @property
  def patches(self) -> int:
    """P, the patches of an image."""
    return self.grid ** 2

  def products(self, layer: int = -1) -> list[Product]:
    """Matrix products of one image, up to a feature layer."""
    side, c, f = self.patch_size, self.width, self.mlp_width
    n = self.patches + self.class_token
    found = [Product(2.0 * self.patches * 3 * side * side * c, "patch_ijac")]
    for i in range(self.layers + 1 + layer):
      found += [Product(2.0 * n * c * c, f"layers/{x}_chk", i) for x in "qkv"]
      up, down = ((("gate", "value"), "out") if self.gated else
                  (("up",), "down"))
      found += [Product(4.0 * n * n * c, "", i),
                Product(2.0 * n * c * c, "layers/o_hkc", i),
                *(Product(2.0 * n * c * f, f"layers/{x}_cf", i) for x in up),
                Product(2.0 * n * f * c, f"layers/{down}_fc", i)]
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


def dinov2(**sizes: Any) -> ViTConfig:
  """DINOv2: class token, layer scale, norm after the last layer."""
  peculiar = dict(
      activation="gelu", patch_bias=True, pre_norm=False,
      post_norm="features", norm_eps=1e-6, layer_scale=True,
      mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
  return ViTConfig(**(peculiar | sizes))


def eva(**sizes: Any) -> ViTConfig:
  """EVA-CLIP's ViT-g as in BLIP-2 and InstructBLIP."""
  peculiar = dict(activation="gelu", patch_bias=True, pre_norm=False,
                  post_norm="both", norm_eps=1e-6)
  return ViTConfig(**(peculiar | sizes))


def aimv2(**sizes: Any) -> ViTConfig:
  """AIMv2, the tower of Ovis2: RMSNorms, SwiGLU, no class token or biases."""
  peculiar = dict(
      activation="silu", class_token=False, patch_bias=True, pre_norm=False,
      patch_norm=True, post_norm="features", rms=True, qkv_bias=False,
      biases=False, gated=True)
  return ViTConfig(**(peculiar | sizes))


class ViT(nn.Module):
  """pixels f[I,H,W,3], normalised -> features f[I,P,C].

  Parameters (i, j in a patch, a colour, p places, r registers, c width):
    patch_ijac (patch_bias_c) (class_c) position_pc (register_rc) (mask_c)
    (patch_norm_scale_c) (pre_norm_scale_c pre_norm_bias_c)
    (post_norm_scale_c post_norm_bias_c)
    layers/...  as in `Block`, stacked
    (head/...)  as in `MapHead`, made only where images are pooled

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
    self._run(self.layer)
    self.patch_ijac = self.param(
        "patch_ijac", normal((3 * side * side) ** -0.5), (side, side, 3, c))
    if config.patch_bias:
      self.patch_bias_c = self.param("patch_bias_c", zeros, (c,))
    if config.class_token:
      self.class_c = self.param("class_c", normal(c ** -0.5), (c,))
    learnt = ((config.learnt_size or config.image_size) // side) ** 2
    self.position_pc = self.param("position_pc", normal(c ** -0.5),
                                  (learnt + config.class_token, c))
    if config.registers:
      self.register_rc = self.param("register_rc", normal(c ** -0.5),
                                    (config.registers, c))
    if config.mask_token:
      self.mask_c = self.param("mask_c", zeros, (c,))
    for name, present in (("patch_norm", config.patch_norm),
                          ("pre_norm", config.pre_norm),
                          ("post_norm", config.post_norm != "none")):
      if present:
        setattr(self, f"{name}_scale_c",
                self.param(f"{name}_scale_c", ones, (c,)))
        if not config.rms:
          setattr(self, f"{name}_bias_c",
                  self.param(f"{name}_bias_c", zeros, (c,)))
    shared = dict(width=c, heads=config.heads, mlp_width=config.mlp_width,
                  activation=config.activation, norm_eps=config.norm_eps,
                  dtype=self.dtype, layout=self.layout)
    self.layers = LayerStack(
        Block(**shared, depth=config.layers, axes="ipc",
              qkv_bias=config.qkv_bias, gated=config.gated,
              layer_scale=config.layer_scale, biases=config.biases,
              rms=config.rms, parent=None),
        depth=config.layers, remat=self.remat)
    if config.head:
      self.head = MapHead(**shared)

  def __call__(self, pixels: jax.Array) -> jax.Array:
    """f[I,H,W,3] -> f[I,P,C], or f[I,1+P,C] when the class token is kept.

    Raises:
      ValueError: pixels of another shape than the tower was made for.
    """
    x, _ = self.layers(self._embed(pixels), last=self._run(self.layer))
    x = x[:len(pixels)]
    if self.layer == -1 and self.config.post_norm in ("features", "both"):
      x = self._norm("post_norm", x)
    if self.class_token and self.config.registers:
      return jnp.concatenate([x[:, :1], self._patches(x)], axis=1)
    return x if self.class_token else self._patches(x)

  def pooled(self, pixels: jax.Array) -> jax.Array:
    """f[I,H,W,3] -> f[I,C], one vector an image.

    The class token after all layers and the norm, or what the pooling head
    makes of the patches.

    Raises:
      ValueError: the tower has neither.
    """
    if not self.config.class_token and not self.config.head:
      raise ValueError("this tower has no class token to pool, and no pooling "
                       "head")
    x, _ = self.layers(self._embed(pixels))
    if self.config.head:
      x = self.head(self._norm("post_norm", x))
    else:
      x = self._norm("post_norm", x[:, 0])
      if self.config.post_norm == "both":
        x = self._norm("post_norm", x)
    return self.layout.constrain(x, "ic")[:len(pixels)]

  def dense(self, pixels: jax.Array, how: str, layer: int = -1,
            blocks: int | None = None) -> jax.Array:
    """Patches brought to where `pooled` is: f[I,H,W,3] -> f[I,P,C].

    how:
      "raw"       the hidden states of `layer`, normed as the class token is.
                  Of CLIP's they rank the background above what is shown.
      "maskclip"  the last layer's attention replaced by its value path
                  (MaskCLIP, 2112.01071): each patch sees itself alone.
      "surgery"   beside the last `blocks` layers runs a second path, which
                  adds up what attention among the values alone gives, without
                  MLPs (CLIP Surgery, 2304.05653).
      "map_head"  each patch alone through SigLIP's pooling head.

    Args:
      pixels: normalised.
      how: see above.
      layer: the last layer to run, counted from the end.
      blocks: layers of the second path; None is 6, as published, or all that
        there are.

    Raises:
      ValueError: no such way, or one that this tower does not have.
    """
    if how not in DENSE:
      raise ValueError(f"unknown dense features {how!r}{nearest(how, DENSE)} "
                       f"(known: {', '.join(DENSE)})")
    if (how == "map_head") != self.config.head:
      raise ValueError(
          f"{how!r}: this tower pools by " + (
              "attention, and a single patch reaches the joint space through "
              "its pooling head alone; use 'map_head'" if self.config.head
              else "its class token and has no pooling head; use one of "
              f"{', '.join(DENSE[:-1])}"))
    ran = self._run(layer)
    changed = {"maskclip": 1, "surgery": min(6, ran) if blocks is None
               else blocks}.get(how, 0)
    if not 0 <= changed <= ran or how == "surgery" and changed < 1:
      raise ValueError(f"blocks = {blocks}, layer = {layer}: of {ran} layers, "
                       f"{changed} cannot be changed")
    x = self._embed(pixels)
    x, _ = self.layers(x, last=ran - changed)
    if how == "maskclip":
      x, _ = self.layers(x, None, None, "itself", first=ran - 1, last=ran)
    elif how == "surgery":
      _, added = self.layers(x, None, None, "values", first=ran - changed,
                             last=ran)
      x = x + added.sum(0, dtype=jnp.float32).astype(x.dtype)
    x = self._norm("post_norm", self._patches(x))
    if self.config.head:
      x = self.head.each(x)
    return self.layout.constrain(x, "ipc")[:len(pixels)]

  def _run(self, layer: int) -> int:
    """How many layers run so that `layer`, counted from the end, is last."""
    if not -self.config.layers - 1 <= layer <= -1:
      raise ValueError(
          f"feature layer {layer}: layers are counted from the end, from -1 "
          f"(the last) to {-self.config.layers - 1} (the embedded patches)")
    return self.config.layers + 1 + layer

  def _norm(self, name: str, x: jax.Array) -> jax.Array:
    if name == "post_norm" and self.config.post_norm == "none":
      return x
    if self.config.rms:
      return rms_norm(x, getattr(self, f"{name}_scale_c"),
                      self.config.norm_eps)
    return layer_norm(x, getattr(self, f"{name}_scale_c"),
                      getattr(self, f"{name}_bias_c"), self.config.norm_eps)

  def _patches(self, x: jax.Array) -> jax.Array:
    """Without class token and registers."""
    return x[:, self.config.class_token + self.config.registers:]

  def _embed(self, pixels: jax.Array) -> jax.Array:
    """f[I,H,W,3] -> f[I',L,C], the input of the first layer.

    I' is I padded to what the mesh divides; L counts class token, registers
    and patches, in this order.
    """
    config, side = self.config, self.config.patch_size
    expected = (config.image_size, config.image_size, 3)
    if pixels.ndim != 4 or pixels.shape[1:] != expected:
      raise ValueError(
          f"this tower reads pixels f[I,{config.image_size},"
          f"{config.image_size},3], not {list(pixels.shape)}; resize on the "
          "host with the tower's image processor")
    spare = -len(pixels) % self.layout.shards(AXES)
    pixels = jnp.pad(pixels, ((0, spare), (0, 0), (0, 0), (0, 0)))
    pixels = self.layout.constrain(pixels.astype(self.dtype), "iyxa")
    grid = config.grid
    pixels = pixels[:, :grid * side, :grid * side]
    x = pixels.reshape(-1, grid, side, grid, side, 3)
    x = jnp.einsum("nyixja,ijac->nyxc", x, self.patch_ijac.astype(self.dtype))
    if config.patch_bias:
      x = x + self.patch_bias_c.astype(self.dtype)
    x = x.reshape(-1, config.patches, config.width)
    if config.patch_norm:
      x = self._norm("patch_norm", x)

    def repeated(tokens: jax.Array) -> jax.Array:
      return jnp.broadcast_to(tokens.astype(self.dtype),
                              (len(x), *tokens.shape))

    if config.class_token:
      x = jnp.concatenate([repeated(self.class_c[None]), x], axis=1)
    x = x + on_grid(self.position_pc, config.class_token, grid,
                    config.antialias).astype(self.dtype)
    if config.registers:
      first = int(config.class_token)
      x = jnp.concatenate([x[:, :first], repeated(self.register_rc),
                           x[:, first:]], axis=1)
    return self._norm("pre_norm", x) if config.pre_norm else x
