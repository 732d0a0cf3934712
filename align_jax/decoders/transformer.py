"""One decoder body: RMSNorm, grouped-query attention, RoPE, a gated MLP.

Source: Llama 2 and 3 (arXiv 2307.09288, 2407.21783); what other families do
otherwise is a switch of `DecoderConfig`. Parameters:

  embed_vd  head_vd (only if untied)  final_norm_d
  layers/   attn_norm_d  q_dhk  k_dgk  v_dgk  o_hkd
            mlp_norm_d   gate_df  up_df  down_fd
            with biases: q_bias_hk k_bias_gk v_bias_gk  o_bias_d
                         gate_bias_f up_bias_f down_bias_d
            with norms:  q_norm_k k_norm_k  post_attn_norm_d post_mlp_norm_d

g counts the key-value heads. Everything under `layers` leads with an axis of
layers. The head is the embedding table where it is tied.
"""

import dataclasses
import functools
from collections.abc import Callable
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
from align_jax.ops.product import einsum
from align_jax.ops.rope import (
    LongRope,
    Scaling,
    rope_tables,
    rotate,
    sample_lengths,
)
from align_jax.ops.stack import LayerStack
from align_jax.parallel.layout import Layout
from align_jax.registry import nearest

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
}


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
    rope_scaling: one of `ops/rope.py`, or None.
    rotary_width: how much of a head RoPE turns; 0 means K.
    windows: of each layer, how many tokens a token sees, itself among them; 0
      is all of them. () is 0 for every layer.
    local_rope_theta: base of the layers that have a window, unscaled; 0 means
      that they are like the others.
    norm_eps: of every RMSNorm.
    norm_offset: added to the weights of every RMSNorm.
    qk_norm: an RMSNorm on each head's queries and keys, before RoPE.
    post_norms: an RMSNorm on what attention and MLP add to the stream.
    activation: of the gate, a key of `ACTIVATIONS`.
    attn_scale: of the attention logits; 0 means K ** -0.5.
    attn_soft_cap: c in c tanh(z / c) on the attention logits; 0 means none.
    logit_soft_cap: the same on the head's logits.
    embed_scale: of the embeddings of words, where they enter.
    tied_head: the head is the embedding table.
    max_positions: the length the model was trained for.
    qkv_bias: biases on q, k and v.
    o_bias: bias on what leaves attention.
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
  rope_scaling: Scaling | None = None
  rotary_width: int = 0
  windows: tuple[int, ...] = ()
  local_rope_theta: float = 0.0
  norm_eps: float = 1e-5
  norm_offset: float = 0.0
  qk_norm: bool = False
  post_norms: bool = False
  activation: str = "silu"
  attn_scale: float = 0.0
  attn_soft_cap: float = 0.0
  logit_soft_cap: float = 0.0
  embed_scale: float = 1.0
  tied_head: bool = True
  max_positions: int = 2048
  qkv_bias: bool = False
  o_bias: bool = False
  mlp_bias: bool = False

  def __post_init__(self) -> None:
    faults = []
    object.__setattr__(self, "windows", tuple(self.windows))
    if not self.kv_heads:
      object.__setattr__(self, "kv_heads", self.heads)
    if not self.head_width and self.width % self.heads:
      faults.append(f"width {self.width} does not divide into "
                    f"{self.heads} heads; give head_width")
    elif not self.head_width:
      object.__setattr__(self, "head_width", self.width // self.heads)
    if not self.attn_scale and self.head_width:
      object.__setattr__(self, "attn_scale", self.head_width ** -0.5)
    if not self.rotary_width:
      object.__setattr__(self, "rotary_width", self.head_width)
    if self.head_width % 2:
      faults.append(f"head_width {self.head_width} is odd; RoPE turns pairs")
    elif self.rotary_width % 2 or self.rotary_width > self.head_width:
      faults.append(f"rotary_width {self.rotary_width} is odd or wider than a "
                    f"head, {self.head_width}")
    elif isinstance(self.rope_scaling, LongRope):
      faults += [f"rope_scaling.{name} has {len(divisors)} divisors, "
                 f"rotary_width {self.rotary_width} needs "
                 f"{self.rotary_width // 2}"
                 for name, divisors in (("short", self.rope_scaling.short),
                                        ("long", self.rope_scaling.long))
                 if len(divisors) != self.rotary_width // 2]
    if self.heads % self.kv_heads:
      faults.append(f"{self.heads} heads do not divide into "
                    f"{self.kv_heads} kv_heads")
    if self.windows and len(self.windows) != self.layers:
      faults.append(f"{len(self.windows)} windows for {self.layers} layers")
    if any(w < 0 for w in self.windows):
      faults.append(f"windows below 0: {list(self.windows)}")
    if self.local_rope_theta and not any(self.windows):
      faults.append("local_rope_theta, but no layer has a window")
    if self.activation not in ACTIVATIONS:
      faults.append(f"unknown activation {self.activation!r}"
                    f"{nearest(self.activation, ACTIVATIONS)} "
                    f"(known: {', '.join(ACTIVATIONS)})")
    if faults:
      raise ValueError("; ".join(faults))

  def products(self, length: int) -> list[Product]:
    """Matrix products of one row of `length` tokens, without the head."""
    d, f = self.width, self.mlp_width
    h, g = self.heads * self.head_width, self.kv_heads * self.head_width
    square = 4.0 * length * length * h
    found = []
    for i in range(self.layers):
      # A query meets itself and those before it, as far as the window goes:
      # half of the square without one.
      reach = min((self.windows and self.windows[i]) or length, length)
      met = 4.0 * h * (reach * length - reach * reach / 2)
      found += [Product(2.0 * length * d * out, f"layers/{x}", i)
                for x, out in (("q_dhk", h), ("k_dgk", g), ("v_dgk", g))]
      found += [Product(met, "", i, masked=square - met)]
      found += [Product(2.0 * length * into * out, f"layers/{x}", i)
                for x, into, out in (("o_hkd", h, d), ("gate_df", d, f),
                                     ("up_df", d, f), ("down_fd", f, d))]
    return found

  @property
  def cached_positions(self) -> int | None:
    """Up to which length a sample's cached keys stay right; None: any.

    Beyond it, a sample that began below must be read anew (`LongRope`).
    """
    if isinstance(self.rope_scaling, LongRope):
      return self.rope_scaling.original_max_positions
    return None

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

  def draw(key: jax.Array, shape: tuple[int, ...],
           dtype: Any = jnp.float32) -> jax.Array:
    # Flax takes axes that are neither of its inputs nor of its outputs, such
    # as heads, for more inputs.
    return nn.initializers.variance_scaling(
        1.0, "fan_in", "normal", in_axis=tuple(range(inputs)),
        out_axis=tuple(range(inputs, len(shape))))(key, shape, dtype)

  return draw


def _norm_weight(module: nn.Module, name: str, width: int) -> jax.Array:
  """f[width], at first such that the norm scales by one."""
  init = nn.initializers.constant(1.0 - module.config.norm_offset)
  return module.param(name, init, (width,))


class Block(nn.Module):
  """One layer: attention, then a gated MLP, each on a normalised residual."""
  config: DecoderConfig
  dtype: Any = jnp.float32
  layout: Layout = Layout()
  lora: Lora | None = None

  def product(self, equation: str, x: jax.Array, name: str, *shape: int,
              inputs: int = 1) -> jax.Array:
    """x with a weight and, where it has them, with its adapters."""
    y = einsum(equation, x, self.weight(name, *shape, inputs=inputs),
               self.layout)
    if self.lora is not None and self.lora.covers(name):
      y = y + adapted(self, self.lora, equation, x, name, shape)
    return y

  def weight(self, name: str, *shape: int, inputs: int = 1) -> jax.Array:
    """A parameter in the dtype of the computation."""
    init = nn.initializers.zeros_init() if "bias" in name else _matrix(inputs)
    return self.param(name, init, shape).astype(self.dtype)

  def norm(self, name: str, x: jax.Array) -> jax.Array:
    """RMSNorm over the last axis, with weights of that name."""
    return rms_norm(x, _norm_weight(self, name, x.shape[-1]),
                    self.config.norm_eps, self.config.norm_offset)

  @nn.compact
  def __call__(
      self,
      x: jax.Array,
      rope: Any,
      where: dict[str, jax.Array],
      cursor: jax.Array | None = None,
      cache: tuple[jax.Array, jax.Array] | None = None,
      window: jax.Array | None = None,
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """x f[B,L,D] -> f[B,L,D] and, with a cache, this call's keys and values.

    Args:
      x: the residual stream.
      rope: cosine and sine f32[B,L,1,R]; two pairs where layers with a window
        have their own, theirs second.
      where: positions and segments of queries and keys, as `attention` has
        them.
      cursor: where in the cache this call's keys and values go.
      cache: keys and values f[B,S,G,K] so far.
      window: i32[] of this layer, 0 for none, where layers differ.
    """
    c, layout = self.config, self.layout
    d, h, g, k, f = c.width, c.heads, c.kv_heads, c.head_width, c.mlp_width
    if c.local_rope_theta:
      rope = jax.tree.map(lambda a, b: jnp.where(window > 0, b, a), *rope)
    windows = tuple(sorted(set(c.windows)))
    if window is None and windows:
      window = windows[0] or None  # the same everywhere: kernels know it

    y = self.norm("attn_norm_d", x)
    q = self.product("bld,dhk->blhk", y, "q_dhk", d, h, k)
    keys = self.product("bld,dgk->blgk", y, "k_dgk", d, g, k)
    values = self.product("bld,dgk->blgk", y, "v_dgk", d, g, k)
    if c.qkv_bias:
      q = q + self.weight("q_bias_hk", h, k)
      keys = keys + self.weight("k_bias_gk", g, k)
      values = values + self.weight("v_bias_gk", g, k)
    if c.qk_norm:
      q, keys = self.norm("q_norm_k", q), self.norm("k_norm_k", keys)
    q = layout.constrain(rotate(q, *rope), "blhk")
    keys = rotate(keys, *rope)

    new = None
    if cache is not None:
      new = tuple(n.astype(c.dtype) for n, c in zip((keys, values), cache))
      keys, values = (
          jax.lax.dynamic_update_slice_in_dim(old, n, cursor, 1)
          .astype(self.dtype) for old, n in zip(cache, new))
    packed = cache is None
    mix = attention(q, keys, values, causal=True, **where, window=window,
                    scale=c.attn_scale, soft_cap=c.attn_soft_cap or None,
                    windows=windows or None, packed=packed, layout=layout,
                    balanced=packed and balances(x.shape[1], layout))
    y = self.product("blhk,hkd->bld", mix, "o_hkd", h, k, d, inputs=2)
    if c.o_bias:
      y = y + self.weight("o_bias_d", d)
    if c.post_norms:
      y = self.norm("post_attn_norm_d", y)
    x = layout.constrain(x + y, "bld")

    y = self.norm("mlp_norm_d", x)
    gate = self.product("bld,df->blf", y, "gate_df", d, f)
    up = self.product("bld,df->blf", y, "up_df", d, f)
    if c.mlp_bias:
      gate = gate + self.weight("gate_bias_f", f)
      up = up + self.weight("up_bias_f", f)
    y = layout.constrain(ACTIVATIONS[c.activation](gate) * up, "blf")
    y = self.product("blf,fd->bld", y, "down_fd", f, d)
    if c.mlp_bias:
      y = y + self.weight("down_bias_d", d)
    if c.post_norms:
      y = self.norm("post_mlp_norm_d", y)
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
    # As a matrix of its width: at 0.02, which is usual for large models, one
    # of width 128 learns to look back far later (configs/mini/lm.py).
    table = nn.initializers.normal(c.width ** -0.5)
    self.embed_table = self.param("embed_vd", table, (c.vocab_size, c.width))
    if not c.tied_head:
      self.head_table = self.param("head_vd", table, (c.vocab_size, c.width))
    self.final_norm = _norm_weight(self, "final_norm_d", c.width)
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
    if self.config.embed_scale != 1.0:
      x = x * jnp.asarray(self.config.embed_scale, self.dtype)
    return self.layout.constrain(x, "bld")

  def logits(self, hidden: jax.Array) -> jax.Array:
    """hidden f[...,D] -> f32[...,V]."""
    logits = jnp.einsum(
        "...d,vd->...v", hidden.astype(self.dtype),
        self.head_vd().astype(self.dtype), preferred_element_type=jnp.float32)
    cap = self.config.logit_soft_cap
    return cap * jnp.tanh(logits / cap) if cap else logits

  def __call__(
      self,
      x: jax.Array,
      positions: jax.Array,
      segment_ids: jax.Array,
      cache: KVCache | None = None,
      return_all: bool = False,
      between: tuple[int, Callable[[jax.Array], jax.Array]] | None = None,
  ) -> tuple[jax.Array, KVCache | None]:
    """Reads embeddings; attends within a sample and, with a cache, to it.

    Args:
      x: f[B,L,D].
      positions: i32[B,L], counted within each sample.
      segment_ids: i32[B,L], 0 for padding, which may lie anywhere.
      cache: what was read before; see `KVCache`.
      return_all: every hidden state instead of the last.
      between: (n, change): the residual stream after n layers is changed
        before the others read it.

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
    if len(set(c.windows)) > 1 or c.local_rope_theta:
      scanned["window"] = jnp.array(c.windows, jnp.int32)
    run = functools.partial(self.layers, scanned=scanned)
    shared = (self._rope(where), where, cursor)
    if between is None:
      x, new = run(x.astype(self.dtype), *shared, return_all=return_all)
    else:
      at, change = between
      if not 0 < at < c.layers or return_all:
        raise ValueError(f"between layers 1 and {c.layers} of this decoder, "
                         f"not after {at}; and not with return_all")
      x, early = run(x.astype(self.dtype), *shared, last=at)
      x = change(collect(x, layout) if dealt else x)
      x, late = run(spread(x, layout) if dealt else x, *shared, first=at)
      new = jax.tree.map(lambda *parts: jnp.concatenate(parts), early, late)
    if dealt:
      x = collect(x, layout, axis=1 + return_all)
    if cache is not None:
      # Layers give back only what is new, so that a donated cache is written
      # in place, once.
      cache = KVCache(write(cache.k, new[0], cursor, 2),
                      write(cache.v, new[1], cursor, 2),
                      kv_positions, kv_segments, cursor + x.shape[-2])
    norm = lambda x: rms_norm(x, self.final_norm, c.norm_eps, c.norm_offset)
    if return_all:
      return x.at[-1].set(norm(x[-1])), cache
    return norm(x), cache

  def _rope(self, where: dict[str, jax.Array]) -> Any:
    """Cosine and sine as `Block` takes them."""
    c, positions = self.config, where["q_positions"]
    lengths = None
    if isinstance(c.rope_scaling, LongRope):
      lengths = sample_lengths(where["q_segments"], where["kv_segments"],
                               where["kv_positions"])
    rope = rope_tables(positions, c.rotary_width, c.rope_theta,
                       c.rope_scaling, lengths)
    if not c.local_rope_theta:
      return rope
    return rope, rope_tables(positions, c.rotary_width, c.local_rope_theta)
