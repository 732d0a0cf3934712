"""Two towers that meet: CLIP (2103.00020) and SigLIP (2303.15343) whole."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.parallel.layout import Layout
from align_jax.towers.pixels import normalise
from align_jax.towers.text import TextConfig, TextTower
from align_jax.towers.vit import ViTConfig


@dataclasses.dataclass(frozen=True)
class DualConfig:
  """Both towers, and the width that their embeddings share.

  Attributes:
    tower: of the images.
    text: of the texts.
    embed_width: E.
    sigmoid: SigLIP's way: what the tower pools is the image's embedding, a
      projection with a bias makes the text's, and logits have a bias.

  Raises:
    ValueError: parts that do not fit together.
  """
  tower: ViTConfig
  text: TextConfig
  embed_width: int
  sigmoid: bool = False

  def __post_init__(self) -> None:
    if self.sigmoid and not self.tower.head:
      raise ValueError("two towers: the images need a pooling head "
                       "(sigmoid is True, tower.head is False)")
    if self.sigmoid and self.embed_width != self.tower.width:
      raise ValueError(
          f"two towers: texts are projected to {self.embed_width}, images are "
          f"{self.tower.width} wide and not projected (sigmoid is True)")

  def make(self, **fields: Any) -> "DualEncoder":
    """The module; `fields` are dtype, remat and layout."""
    return DualEncoder(self, **fields)


class DualEncoder(nn.Module):
  """A batch -> unit embeddings of its images and of its texts.

  Parameters (c a tower's width, e the shared width):
    tower/... text/... (image_projection_ce) text_projection_ce
    (text_projection_bias_e) logit_scale (logit_bias)

  `logit_scale` is the logarithm of the inverse temperature and starts at
  log(1 / 0.07), or log(10) with `sigmoid`; whoever uses it clips it. Logits
  are exp(logit_scale) * image . text (+ logit_bias).
  """
  config: DualConfig
  dtype: Any = jnp.float32
  remat: str = "none"
  layout: Layout = Layout()

  def setup(self) -> None:
    config = self.config
    fields = dict(dtype=self.dtype, remat=self.remat, layout=self.layout)
    self.tower = config.tower.make(**fields)
    self.text = TextTower(config.text, **fields)

    def projection(name: str, c: int) -> jax.Array:
      return self.param(name, nn.initializers.normal(c ** -0.5),
                        (c, config.embed_width))

    constant = nn.initializers.constant
    self.text_projection_ce = projection("text_projection_ce",
                                         config.text.width)
    if config.sigmoid:
      self.text_projection_bias_e = self.param(
          "text_projection_bias_e", nn.initializers.zeros,
          (config.embed_width,))
      self.logit_bias = self.param("logit_bias", constant(-10.0), ())
    else:
      self.image_projection_ce = projection("image_projection_ce",
                                            config.tower.width)
    self.logit_scale = self.param(
        "logit_scale", constant(2.3026 if config.sigmoid else 2.6592), ())

  def __call__(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The image in slot 0 of each row, and the row's tokens as its text.

    Args:
      batch: images u8[B,N,H,W,3], image_boxes i32[B,N,4], tokens i32[B,L],
        segment_ids i32[B,L]; one sample a row.

    Returns:
      image_embeds f32[B,E], text_embeds f32[B,E], logit_scale f32[], and with
      `sigmoid` logit_bias f32[].
    """
    config = self.config.tower
    pixels = normalise(batch["images"][:, 0], batch["image_boxes"][:, 0],
                       config.mean, config.std, self.dtype)
    outputs = {
        "image_embeds": self.image_embeds(pixels),
        "text_embeds": self.text_embeds(batch["tokens"],
                                        batch["segment_ids"]),
        "logit_scale": self.logit_scale.astype(jnp.float32),
    }
    if self.config.sigmoid:
      outputs["logit_bias"] = self.logit_bias.astype(jnp.float32)
    return outputs

  def image_embeds(self, pixels: jax.Array) -> jax.Array:
    """f[I,H,W,3], normalised -> f32[I,E], of unit length."""
    return self._whole(self._image(self.tower.pooled(pixels)), "ie")

  def patch_embeds(self, pixels: jax.Array, how: str, layer: int = -1,
                   blocks: int | None = None) -> jax.Array:
    """Every patch where images and texts are compared, of unit length.

    Args:
      pixels: f[I,H,W,3], normalised.
      how: "raw", "maskclip" or "surgery" of CLIP, "map_head" of SigLIP; see
        `ViT.dense`.
      layer: the last layer to run, counted from the end.
      blocks: of "surgery".

    Returns:
      f32[I,P,E].

    Raises:
      ValueError: a way that the tower does not have.
    """
    x = self.tower.dense(pixels, how, layer, blocks)
    return self._whole(self._image(x), "ipe")

  def text_embeds(self, tokens: jax.Array,
                  segment_ids: jax.Array | None = None) -> jax.Array:
    """i32[B,L] -> f32[B,E], of unit length; segment ids as in `TextTower`."""
    x = self._projected(self.text(tokens, segment_ids),
                        self.text_projection_ce)
    if self.config.sigmoid:
      x = x + self.text_projection_bias_e.astype(jnp.float32)
    return self._whole(x, "be")

  def _image(self, x: jax.Array) -> jax.Array:
    """The image side's projection, where it has one: f[...,C] -> f[...,E]."""
    if self.config.sigmoid:
      return x.astype(jnp.float32)
    return self._projected(x, self.image_projection_ce)

  def _projected(self, x: jax.Array, projection_ce: jax.Array) -> jax.Array:
    return jnp.einsum("...c,ce->...e", x, projection_ce.astype(self.dtype),
                      preferred_element_type=jnp.float32)

  def _whole(self, x: jax.Array, axes: str) -> jax.Array:
    """Unit length, rows back where rows live."""
    x = self.layout.constrain(x, axes)
    square = jnp.square(x).sum(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
    # Images leave the tower spread over all devices; the way back is explicit.
    x = self.layout.constrain(x, axes)
    return self.layout.constrain(x, "b" + axes[1:])
