"""CLIP whole: two towers, two projections, one temperature (2103.00020)."""

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
  """Both towers, and the width that their embeddings share."""
  tower: ViTConfig
  text: TextConfig
  embed_width: int

  def make(self, **fields: Any) -> "DualEncoder":
    """The module; `fields` are dtype, remat and layout."""
    return DualEncoder(self.tower, self.text, self.embed_width, **fields)


class DualEncoder(nn.Module):
  """A batch -> unit embeddings of its images and of its texts.

  Parameters (c a tower's width, e the shared width):
    tower/... text/... image_projection_ce text_projection_ce logit_scale

  `logit_scale` is the logarithm of the inverse temperature and starts at
  log(1 / 0.07); whoever uses it clips it.
  """
  tower_config: ViTConfig
  text_config: TextConfig
  embed_width: int
  dtype: Any = jnp.float32
  remat: str = "none"
  layout: Layout = Layout()

  @property
  def config(self) -> DualConfig:
    return DualConfig(self.tower_config, self.text_config, self.embed_width)

  def setup(self) -> None:
    fields = dict(dtype=self.dtype, remat=self.remat, layout=self.layout)
    self.tower = self.tower_config.make(**fields)
    self.text = TextTower(self.text_config, **fields)

    def projection(name: str, c: int) -> jax.Array:
      return self.param(name, nn.initializers.normal(c ** -0.5),
                        (c, self.embed_width))

    self.image_projection_ce = projection("image_projection_ce",
                                          self.tower_config.width)
    self.text_projection_ce = projection("text_projection_ce",
                                         self.text_config.width)
    self.logit_scale = self.param(
        "logit_scale", nn.initializers.constant(2.6592), ())

  def __call__(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The image in slot 0 of each row, and the row's tokens as its text.

    Args:
      batch: images u8[B,N,H,W,3], image_boxes i32[B,N,4], tokens i32[B,L],
        segment_ids i32[B,L]; one sample a row.

    Returns:
      image_embeds f32[B,E], text_embeds f32[B,E], logit_scale f32[].
    """
    config = self.tower_config
    pixels = normalise(batch["images"][:, 0], batch["image_boxes"][:, 0],
                       config.mean, config.std, self.dtype)
    return {
        "image_embeds": self.image_embeds(pixels),
        "text_embeds": self.text_embeds(batch["tokens"],
                                        batch["segment_ids"]),
        "logit_scale": self.logit_scale.astype(jnp.float32),
    }

  def image_embeds(self, pixels: jax.Array) -> jax.Array:
    """f[I,H,W,3], normalised -> f32[I,E], of unit length."""
    return self._unit(self.tower.pooled(pixels), self.image_projection_ce,
                      "ie")

  def text_embeds(self, tokens: jax.Array,
                  segment_ids: jax.Array | None = None) -> jax.Array:
    """i32[B,L] -> f32[B,E], of unit length."""
    return self._unit(self.text(tokens, segment_ids), self.text_projection_ce,
                      "be")

  def _unit(self, pooled: jax.Array, projection_ce: jax.Array,
            axes: str) -> jax.Array:
    x = jnp.einsum("bc,ce->be", pooled, projection_ce.astype(self.dtype),
                   preferred_element_type=jnp.float32)
    x = self.layout.constrain(x, axes)
    square = jnp.square(x).sum(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
    # Images leave the tower spread over all devices; the way back is explicit.
    x = self.layout.constrain(x, axes)
    return self.layout.constrain(x, "be")
