"""One decoder body: RMSNorm, grouped-query attention, RoPE, SwiGLU.

Source: Llama 2 and 3 (arXiv 2307.09288, 2407.21783). Parameters:

  embed_vd  head_vd (only if untied)  final_norm_d
  layers/   attn_norm_d  q_dhk  k_dgk  v_dgk  o_hkd
            mlp_norm_d   gate_df  up_df  down_fd
            with biases: q_bias_hk k_bias_gk v_bias_gk o_bias_d
                         gate_bias_f up_bias_f down_bias_d

g counts the key-value heads. Everything under `layers` leads with an axis of
layers. The head is the embedding table where it is tied.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from align_jax.decoders.lora import Lora, adapted
from align_jax.ops.attention import attention
from align_jax.ops.context import balances, collect, spread
from align_jax.ops.cost import Product
from align_jax.ops.embed_lookup import embed_lookup
from align_jax.ops.norms import rms_norm
from align_jax.ops.rope import Llama3Scaling, rope_tables, rotate
from align_jax.ops.stack import LayerStack
from align_jax.parallel.layout import Layout


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes and switches of a decoder.

  Attributes:
    vocab_size: V.
    width: D.
    layers: number of layers.
    heads: H, query heads.
    kv_heads: G, key-value heads; divides H.
    head_width: K; 0 means D / H.
    mlp_width: F.
    rope_theta: base of the rotary frequencies.
    rope_scaling: Llama 3's, or None.
    norm_eps: of every RMSNorm.
    tied_head: the head is the embedding table.
    max_positions: the length the model was trained for.
    attn_bias: biases on q, k, v and o.
    mlp_bias: biases on gate, up and down.
  """
  vocab_size: int
  width: int
  layers: int
  heads: int
  mlp_width: int
  kv_heads: int = 0
  head_width: int = 0
  rope_theta: float = 10_000.0
  rope_scaling: Llama3Scaling | None = None
  norm_eps: float = 1e-5
  tied_head: bool = True
  max_positions: int = 2048
  attn_bias: bool = False
  mlp_bias: bool = False

  def __post_init__(self) -> None:
    faults = []
    if not self.kv_heads:
      object.__setattr__(self, "kv_heads", self.heads)
    if not self.head_width and self.width % self.heads:
      faults.append(f"width {self.width} does not divide into "
                    f"{self.heads} heads; give head_width")
    elif not self.head_width:
      object.__setattr__(self, "head_width", self.width // self.heads)
    if self.head_width % 2:
      faults.append(f"head_width {self.head_width} is odd; RoPE turns pairs")
    if self.heads % self.kv_heads:
      faults.append(f"{self.heads} heads do not divide into "
                    f"{self.kv_heads} kv_heads")
    if faults:
      raise ValueError("; ".join(faults))

  def products(self, length: int) -> list[Product]:
    """Matrix products of one row of `length` tokens, without the head."""
    d, f = self.width, self.mlp_width
    h, g = self.heads * self.head_width, self.kv_heads * self.head_width
    # A query meets itself and those before it: half of the square.
    half = 2.0 * length * length * h
    found = []
    for i in range(self.layers):
      found += [Product(2.0 * length * d * out, f"layers/{x}", i)
                for x, out in (("q_dhk", h), ("k_dgk", g), ("v_dgk", g))]
      found += [Product(half, "", i, masked=half)]
      found += [Product(2.0 * length * into * out, f"layers/{x}", i)
                for x, into, out in (("o_hkd", h, d), ("gate_df", d, f),
                                     ("up_df", d, f), ("down_fd", f, d))]
    return found

  def make(self, **fields: Any) -> "Decoder":
    """The module; `fields` are those of `Decoder` beside its config."""
    return Decoder(self, **fields)


@struct.dataclass
class KVCache:
  """Keys and values of the tokens read so far, at static shapes.

  A place whose segment is 0 is a hole: never filled, or padding. A call that
  reads L tokens fills the L places from `cursor` on, in every row.

  Attributes:
    k: f[layers,B,S,G,K], already turned by RoPE.
    v: f[layers,B,S,G,K].
    positions: i32[B,S].
    segment_ids: i32[B,S].
    cursor: i32[]. The caller keeps cursor + L <= S.
  """
  k: jax.Array
  v: jax.Array
  positions: jax.Array
  segment_ids: jax.Array
  cursor: jax.Array

  def take_rows(self, rows: jax.Array) -> "KVCache":
    """The cache whose row i is this one's row `rows[i]`."""
    return self.replace(
        k=self.k[:, rows], v=self.v[:, rows],
        positions=self.positions[rows], segment_ids=self.segment_ids[rows])


def init_cache(
    config: DecoderConfig, batch: int, length: int, dtype: Any = jnp.bfloat16
) -> KVCache:
  """An empty cache for `batch` rows of at most `length` tokens."""
  shape = (config.layers, batch, length, config.kv_heads, config.head_width)
  holes = jnp.zeros((batch, length), jnp.int32)
  return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype),
                 holes, holes, jnp.zeros((), jnp.int32))


def _matrix(inputs: int) -> nn.initializers.Initializer:
  """Normal, its variance one over the product of the first `inputs` axes."""
  return nn.initializers.variance_scaling(
      1.0, "fan_in", "normal", in_axis=tuple(range(inputs)), out_axis=-1)


class Block(nn.Module):
  """One layer: attention, then SwiGLU, each on a normalised residual."""
  config: DecoderConfig
  dtype: Any = jnp.float32
  layout: Layout = Layout()
  lora: Lora | None = None

  def product(self, equation: str, x: jax.Array, name: str, *shape: int,
              inputs: int = 1) -> jax.Array:
    """x with a weight and, where it has them, with its adapters."""
    y = jnp.einsum(equation, x, self.weight(name, *shape, inputs=inputs))
    if self.lora is not None and self.lora.covers(name):
      y = y + adapted(self, self.lora, equation, x, name, shape)
    return y

  def weight(self, name: str, *shape: int, inputs: int = 1) -> jax.Array:
    """A parameter in the dtype of the computation."""
    zeros, ones = nn.initializers.zeros_init(), nn.initializers.ones_init()
    init = (ones if "norm" in name else zeros if "bias" in name
            else _matrix(inputs))
    return self.param(name, init, shape).astype(self.dtype)

  @nn.compact
  def __call__(
      self,
      x: jax.Array,
      rope: tuple[jax.Array, jax.Array],
      where: dict[str, jax.Array],
      cursor: jax.Array | None = None,
      cache: tuple[jax.Array, jax.Array] | None = None,
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """x f[B,L,D] -> f[B,L,D] and, with a cache, this call's keys and values.

    Args:
      x: the residual stream.
      rope: cosine and sine f32[B,L,1,K].
      where: positions and segments of queries and keys, as `attention` has
        them.
      cursor: where in the cache this call's keys and values go.
      cache: keys and values f[B,S,G,K] so far.
    """
    c, layout = self.config, self.layout
    d, h, g, k, f = c.width, c.heads, c.kv_heads, c.head_width, c.mlp_width

    y = rms_norm(x, self.weight("attn_norm_d", d), c.norm_eps)
    q = self.product("bld,dhk->blhk", y, "q_dhk", d, h, k)
    keys = self.product("bld,dgk->blgk", y, "k_dgk", d, g, k)
    values = self.product("bld,dgk->blgk", y, "v_dgk", d, g, k)
    if c.attn_bias:
      q = q + self.weight("q_bias_hk", h, k)
      keys = keys + self.weight("k_bias_gk", g, k)
      values = values + self.weight("v_bias_gk", g, k)
    q = layout.constrain(rotate(q, *rope), "blhk")
    keys = rotate(keys, *rope)

    new = None
    if cache is not None:
      new = tuple(n.astype(c.dtype) for n, c in zip((keys, values), cache))
      keys, values = (
          jax.lax.dynamic_update_slice_in_dim(old, n, cursor, 1)
          .astype(self.dtype) for old, n in zip(cache, new))
    packed = cache is None
    mix = attention(q, keys, values, causal=True, **where, packed=packed,
                    balanced=packed and balances(x.shape[1], layout),
                    layout=layout)
    y = self.product("blhk,hkd->bld", mix, "o_hkd", h, k, d, inputs=2)
    if c.attn_bias:
      y = y + self.weight("o_bias_d", d)
    x = layout.constrain(x + y, "bld")

    y = rms_norm(x, self.weight("mlp_norm_d", d), c.norm_eps)
    gate = self.product("bld,df->blf", y, "gate_df", d, f)
    up = self.product("bld,df->blf", y, "up_df", d, f)
    if c.mlp_bias:
      gate = gate + self.weight("gate_bias_f", f)
      up = up + self.weight("up_bias_f", f)
    y = layout.constrain(nn.silu(gate) * up, "blf")
    y = self.product("blf,fd->bld", y, "down_fd", f, d)
    if c.mlp_bias:
      y = y + self.weight("down_bias_d", d)
    return layout.constrain(x + y, "bld"), new


class Decoder(nn.Module):
  """A causal language model over embeddings.

  Attributes:
    config: its sizes.
    dtype: of the computation; parameters keep their own.
    remat: what the backward pass keeps, see `ops/stack.py`.
    layout: where activations live.
    lora: adapters beside its weights, or None.
  """
  config: DecoderConfig
  dtype: Any = jnp.float32
  remat: str = "none"
  layout: Layout = Layout()
  lora: Lora | None = None

  def setup(self) -> None:
    c = self.config
    table = nn.initializers.normal(0.02)
    self.embed_table = self.param("embed_vd", table, (c.vocab_size, c.width))
    if not c.tied_head:
      self.head_table = self.param("head_vd", table, (c.vocab_size, c.width))
    self.final_norm = self.param(
        "final_norm_d", nn.initializers.ones_init(), (c.width,))
    self.layers = LayerStack(
        Block(c, self.dtype, self.layout, self.lora), c.layers, self.remat)

  def embed_vd(self) -> jax.Array:
    """f[V,D], the live embedding table, in its own dtype."""
    return self.embed_table

  def head_vd(self) -> jax.Array:
    """f[V,D], the live head: the embedding table where it is tied."""
    return self.embed_table if self.config.tied_head else self.head_table

  def embed(self, tokens: jax.Array) -> jax.Array:
    """tokens i32[B,L] -> f[B,L,D]."""
    x = embed_lookup(self.embed_table, tokens, dtype=self.dtype,
                     layout=self.layout)
    return self.layout.constrain(x, "bld")

  def logits(self, hidden: jax.Array) -> jax.Array:
    """hidden f[...,D] -> f32[...,V]."""
    return jnp.einsum(
        "...d,vd->...v", hidden.astype(self.dtype),
        self.head_vd().astype(self.dtype), preferred_element_type=jnp.float32)

  def __call__(
      self,
      x: jax.Array,
      positions: jax.Array,
      segment_ids: jax.Array,
      cache: KVCache | None = None,
      return_all: bool = False,
  ) -> tuple[jax.Array, KVCache | None]:
    """Reads embeddings; attends within a sample and, with a cache, to it.

    Args:
      x: f[B,L,D].
      positions: i32[B,L], counted within each sample.
      segment_ids: i32[B,L], 0 for padding, which may lie anywhere.
      cache: what was read before; see `KVCache`.
      return_all: every hidden state instead of the last.

    Returns:
      (hidden, cache): hidden f[B,L,D] after the final norm or, with
      `return_all`, f[layers+1,B,L,D], of which the first is `x` and only the
      last is normalised; the cache with these tokens in it, or None.
    """
    c, layout = self.config, self.layout
    dealt = cache is None and balances(x.shape[1], layout)
    if dealt:
      x, positions, segment_ids = (
          spread(a, layout) for a in (x, positions, segment_ids))
    rope = rope_tables(positions, c.head_width, c.rope_theta, c.rope_scaling)
    kv_positions, kv_segments, scanned = positions, segment_ids, {}
    cursor = None
    if cache is not None:
      cursor = cache.cursor
      write = jax.lax.dynamic_update_slice_in_dim
      kv_positions = write(cache.positions, positions, cursor, 1)
      kv_segments = write(cache.segment_ids, segment_ids, cursor, 1)
      scanned = {"cache": (cache.k, cache.v)}
    where = dict(q_segments=segment_ids, kv_segments=kv_segments,
                 q_positions=positions, kv_positions=kv_positions)
    x, new = self.layers(x.astype(self.dtype), rope, where, cursor,
                         scanned=scanned, return_all=return_all)
    if dealt:
      x = collect(x, layout, axis=1 + return_all)
    if cache is not None:
      # Layers give back only what is new, so that a donated cache is written
      # in place, once.
      cache = KVCache(write(cache.k, new[0], cursor, 2),
                      write(cache.v, new[1], cursor, 2),
                      kv_positions, kv_segments, cursor + x.shape[-2])
    if return_all:
      x = x.at[-1].set(rms_norm(x[-1], self.final_norm, c.norm_eps))
      return x, cache
    return rms_norm(x, self.final_norm, c.norm_eps), cache
