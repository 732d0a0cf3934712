"""Text towers: CLIP's (2103.00020, 2.4) and SigLIP's (2303.15343).

CLIP's is causal and pooled where the text ends. SigLIP's sees all of a row,
padding too, and is pooled at the row's last place: a row has to be as long and
as padded as in training.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.ops.embed_lookup import embed_lookup
from align_jax.ops.norms import layer_norm
from align_jax.ops.stack import LayerStack
from align_jax.parallel.layout import Layout
from align_jax.registry import nearest
from align_jax.towers.block import ACTIVATIONS, Block

POOLS = ("eos", "last")


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Sizes of a text tower.

  Attributes:
    max_positions: the longest text.
    causal: whether a token sees only those before it.
    pool: "eos", the state where the text ends, or "last", that of the row's
      last place, whatever stands there.
    eos_token: the id at whose first place the text is pooled. 2 means what it
      does in the reference: the config was written before the id was kept,
      and the text ends at the highest id of the row. Of no effect where the
      pool is "last".

  Raises:
    ValueError: sizes that do not fit together; all faults at once.
  """
  vocab_size: int
  width: int
  layers: int
  heads: int
  mlp_width: int
  max_positions: int
  eos_token: int
  activation: str = "quick_gelu"
  norm_eps: float = 1e-5
  causal: bool = True
  pool: str = "eos"

  def __post_init__(self) -> None:
    faults = [
        f"{name} is {getattr(self, name)}, it must be at least 1"
        for name in ("vocab_size", "width", "layers", "heads", "mlp_width",
                     "max_positions") if getattr(self, name) < 1]
    if not faults and self.width % self.heads:
      faults.append(f"width {self.width} is no multiple of heads {self.heads}")
    if self.eos_token != 2 and not 0 <= self.eos_token < self.vocab_size:
      faults.append(f"eos_token {self.eos_token} is not below vocab_size "
                    f"{self.vocab_size}")
    for name, allowed in (("activation", ACTIVATIONS), ("pool", POOLS)):
      if (value := getattr(self, name)) not in allowed:
        faults.append(f"unknown {name} {value!r}{nearest(value, allowed)} "
                      f"(known: {', '.join(allowed)})")
    if faults:
      raise ValueError("text tower: " + "; ".join(faults))


class TextTower(nn.Module):
  """tokens i32[B,L] -> f[B,C], one state a text.

  Parameters (v vocabulary, p places, c width):
    embed_vc position_pc final_norm_scale_c final_norm_bias_c
    layers/...  as in `Block`, stacked
  """
  config: TextConfig
  dtype: Any = jnp.float32
  remat: str = "none"
  layout: Layout = Layout()

  @nn.compact
  def __call__(self, tokens: jax.Array,
               segment_ids: jax.Array | None = None) -> jax.Array:
    """One text a row, from its first place.

    Args:
      tokens: i32[B,L].
      segment_ids: i32[B,L], 0 for padding. None where all is text. Of no
        effect where the pool is "last": such a tower was trained to see the
        padding.

    Returns:
      f[B,C].

    Raises:
      ValueError: rows longer than `max_positions`.
    """
    config, c = self.config, self.config.width
    normal, ones, zeros = (nn.initializers.normal, nn.initializers.ones,
                           nn.initializers.zeros)
    b, length = tokens.shape
    if length > config.max_positions:
      raise ValueError(
          f"rows of {length} tokens, but the text tower has "
          f"{config.max_positions} positions (max_positions)")
    embed_vc = self.param("embed_vc", normal(0.02), (config.vocab_size, c))
    position_pc = self.param("position_pc", normal(0.01),
                             (config.max_positions, c))
    scale_c = self.param("final_norm_scale_c", ones, (c,))
    bias_c = self.param("final_norm_bias_c", zeros, (c,))
    layers = LayerStack(
        Block(width=c, heads=config.heads, mlp_width=config.mlp_width,
              depth=config.layers, activation=config.activation,
              norm_eps=config.norm_eps, axes="blc", causal=config.causal,
              dtype=self.dtype, layout=self.layout, parent=None),
        depth=config.layers, remat=self.remat, name="layers")

    if config.pool == "last":
      segment_ids = None
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    x = embed_lookup(embed_vc, tokens, dtype=self.dtype, layout=self.layout)
    x = x + position_pc.astype(self.dtype)[:length]
    x, _ = layers(x, positions, segment_ids)

    if config.pool == "last":
      x = x[:, -1]
    else:
      if segment_ids is not None:
        tokens = jnp.where(segment_ids != 0, tokens, -1)
      ends = tokens if config.eos_token == 2 else tokens == config.eos_token
      x = jnp.take_along_axis(x, ends.argmax(-1)[:, None, None], axis=1)[:, 0]
    x = self.layout.constrain(x, "bc")
    return layer_norm(x, scale_c, bias_c, config.norm_eps)
