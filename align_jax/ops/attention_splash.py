"""Attention on TPUs: the splash kernel, which skips what a mask hides.

Masks over places in the row (causal, windows) are known when the step is
traced, and whole blocks that they hide cost nothing. Segments are compared
inside a block.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as kernels,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as masks,
)
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from align_jax.ops.context import zigzag
from align_jax.parallel.layout import Layout

LANES = 128
SHARE = "splash_share_"  # and millionths
_BLOCK = 512  # as large as on-chip memory takes with its backward blocks


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    kernel: Any,
    share: int,
    q_segments: jax.Array | None = None,
    kv_segments: jax.Array | None = None,
    q_positions: jax.Array | None = None,
    kv_positions: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
  """As `plain`, by places in the row; kernel and share are of `make`."""
  del q_positions, kv_positions, options  # the kernel was made for them
  b, length, _, _ = q.shape
  keys = k.shape[1]
  spare_q, spare_k = -length % LANES, -keys % LANES
  if q_segments is None and (spare_q or spare_k):
    q_segments = jnp.ones((b, length), jnp.int32)
    kv_segments = jnp.ones((b, keys), jnp.int32)
  pad = lambda x, spare: jnp.pad(
      x, [(0, 0), (0, spare)] + [(0, 0)] * (x.ndim - 2))
  segments = None if q_segments is None else kernels.SegmentIds(
      pad(q_segments, spare_q), pad(kv_segments, spare_k))
  heads_first = lambda x, spare: pad(x, spare).swapaxes(1, 2)
  in_axes = (0, 0, 0, None if segments is None else kernels.SegmentIds(0, 0))
  # The scope's name tells plans how much of the square the kernels compute.
  with jax.named_scope(f"{SHARE}{share}"):
    out = jax.vmap(
        lambda q, k, v, s: kernel(q, k, v, segment_ids=s), in_axes)(
            heads_first(q, spare_q), heads_first(k, spare_k),
            heads_first(v, spare_k), segments)
  out = out.swapaxes(1, 2)[:, :length]
  if q_segments is not None:
    out = out * (q_segments != 0)[:, :, None, None].astype(out.dtype)
  return out


def make(length: int, keys: int, causal: bool, window: int | None,
         soft_cap: float | None, layout: Layout, balanced: bool,
         interpret: bool) -> tuple[Any, Any, int]:
  """A kernel, how it is cut over the mesh, and its share of the square.

  The same mask serves all heads, so that one is made and cut along queries
  alone.

  Args:
    length: L, all queries of a row.
    keys: S.
    causal: whether keys after the query are hidden.
    window: keys that a query sees, or None.
    soft_cap: of the logits, or None.
    layout: queries lie over its context axis.
    balanced: in the order of `ops.context.spread`.
    interpret: run it without a TPU.
  """
  shards = layout.shards(("context",))
  with jax.ensure_compile_time_eval():
    kernel, share = _make(
        length + -length % LANES, keys + -keys % LANES, causal, window,
        soft_cap, shards, balanced and shards > 1, interpret)
  if shards == 1:
    return kernel, jax.tree.map(lambda _: P(), kernel), share
  return kernel, kernel.manual_sharding_spec(
      NamedSharding(layout.mesh, P(None, "context"))), share


@functools.lru_cache(maxsize=64)
def _make(length, keys, causal, window, soft_cap, shards, balanced,
          interpret):
  shape = (length, keys)
  if not causal:
    mask = masks.FullMask(shape)
  elif window:
    mask = masks.LocalMask(shape, (window - 1, 0), 0)
  else:
    mask = masks.CausalMask(shape)
  if causal and balanced:
    mask.q_sequence = zigzag(length, shards)
  rows = _block(length // shards // (2 if balanced else 1))
  columns = _block(keys)
  blocks = kernels.BlockSizes(
      block_q=rows, block_kv=columns, block_q_dkv=rows, block_kv_dkv=columns,
      block_q_dq=rows, block_kv_dq=columns)
  kernel = kernels.make_splash_mha(
      masks.MultiHeadMask([mask]), block_sizes=blocks, head_shards=1,
      q_seq_shards=shards, attn_logits_soft_cap=soft_cap,
      # What its backward pass needs; see the policies of ops/stack.py.
      residual_checkpoint_name="attention", interpret=interpret)
  met = kernel.fwd_mask_info.block_mask
  every = (length // rows) * (keys // columns)
  share = 1.0 if met is None else float((met != 0).sum()) / every
  return kernel, round(1e6 * share)


def _block(length: int) -> int:
  """The largest block of at most `_BLOCK` that divides, in lanes."""
  return next(size for size in range(_BLOCK, 0, -LANES)
              if length % size == 0) if length % LANES == 0 else LANES


