"""The ALIGN mix: a softmax over the vocabulary, then a mean of embeddings.

AlignVLM (arXiv 2502.01341), Eq. 1 and 2, from the normalised projected patch
h on:

  P  = softmax(LayerNorm(W2 h))        Eq. 1
  F' = sum_v P_v E_v                   Eq. 2

It is attention with queries h, keys W2 and values E; N visual tokens meet V
words. Here are the plain form, which holds P f32[N,V], and the choice between
it and the streaming form (ops/vocab_stream.py), which never does.
"""

import math

import jax
import jax.numpy as jnp

from align_jax.ops.norms import layer_norm
from align_jax.ops.vocab_stream import stream_mix
from align_jax.parallel.layout import ROWS, Layout
from align_jax.registry import nearest

FORMS = ("auto", "plain", "stream")

# Bytes of f32 logits on a device up to which the plain form is the faster.
PLAIN_BYTES = 4 * 2**20


def vocab_probs(
    h: jax.Array,
    w2_vd: jax.Array,
    scale_v: jax.Array | None,
    bias_v: jax.Array | None,
    *,
    eps: float = 1e-5,
    layout: Layout = Layout(),
    keep: jax.Array | None = None,
    norm_kept: bool = False,
) -> jax.Array:
  """Eq. 1: the distribution over words of each visual token.

  Args:
    h: f[B,N,K], rows, visual tokens of a row, the LLM's width.
    w2_vd: f[V,K], starts as a copy of the LM head.
    scale_v: f[V] affine of the LayerNorm over the vocabulary, or None.
    bias_v: f[V] or None.
    eps: of that LayerNorm.
    layout: where activations live.
    keep: i32[k], distinct words; the softmax is over these alone. None: all.
    norm_kept: the LayerNorm, too, is over the kept words alone.

  Returns:
    f32[B,N,V], rows sum to one. f32 from the logits on: with V(0,1) logits
    the largest of 128k probabilities is about 5e-4, and bf16 would wash out
    the deviations that carry the image.
  """
  # Gathered over fsdp here and once: left to itself the compiler turns the
  # product into a loop that passes pieces of the table around.
  w2_vd = layout.constrain(w2_vd.astype(h.dtype), "v.")
  vocab = w2_vd.shape[0]
  pick = lambda x: None if x is None else x[keep]
  if norm_kept and keep is not None:
    w2_vd, scale_v, bias_v = map(pick, (w2_vd, scale_v, bias_v))
  logits = jnp.einsum("bnd,vd->bnv", h, w2_vd,
                      preferred_element_type=jnp.float32)
  logits = layer_norm(layout.constrain(logits, "b.v"), scale_v, bias_v, eps)
  if keep is None:
    return jax.nn.softmax(logits, axis=-1)
  if not norm_kept:
    logits = logits[..., keep]
  probs = jax.nn.softmax(logits, axis=-1)
  return jnp.zeros((*h.shape[:2], vocab), jnp.float32).at[..., keep].set(probs)


def plain_mix(
    h: jax.Array,
    w2_vd: jax.Array,
    scale_v: jax.Array | None,
    bias_v: jax.Array | None,
    embed_vd: jax.Array,
    *,
    eps: float = 1e-5,
    layout: Layout = Layout(),
    keep: jax.Array | None = None,
    norm_kept: bool = False,
) -> jax.Array:
  """The reference: Eq. 1 and 2 as written; arguments as `vocab_mix`."""
  probs = vocab_probs(h, w2_vd, scale_v, bias_v, eps=eps, layout=layout,
                      keep=keep, norm_kept=norm_kept)
  embed_vd = layout.constrain(embed_vd.astype(h.dtype), "v.")
  mixed = jnp.einsum("bnv,vd->bnd", probs, embed_vd,
                     preferred_element_type=jnp.float32)
  return layout.constrain(mixed, "b..").astype(h.dtype)


def vocab_mix(
    h: jax.Array,
    w2_vd: jax.Array,
    scale_v: jax.Array | None,
    bias_v: jax.Array | None,
    embed_vd: jax.Array,
    *,
    eps: float = 1e-5,
    layout: Layout = Layout(),
    keep: jax.Array | None = None,
    norm_kept: bool = False,
    form: str = "auto",
    chunk: int = 1536,
) -> jax.Array:
  """Eq. 1 and 2: f[B,N,K] -> f[B,N,D], a point in the hull of E's rows.

  Args:
    h: as in `vocab_probs`, as are w2_vd, scale_v, bias_v, eps, layout, keep
      and norm_kept. Tables are given as they are; they are cast to h's dtype
      before they travel, and their gradients add up in f32.
    embed_vd: f[V,D], the LLM's live table.
    form: "plain", "stream", or "auto", the one that is the faster at this
      size.
    chunk: of the streaming form, the most words whose logits exist at a time.

  Returns:
    f[B,N,D] in h's dtype; the sum accumulates in f32.

  Raises:
    ValueError: tables of different vocabularies, or no such form.
  """
  vocab = w2_vd.shape[0]
  sizes = {"W2": vocab, "E": embed_vd.shape[0], **{
      name: len(x) for name, x in (("scale", scale_v), ("bias", bias_v))
      if x is not None}}
  if len(set(sizes.values())) > 1:
    raise ValueError("tables of different vocabularies: " + ", ".join(
        f"{name} has {size} words" for name, size in sizes.items()))
  if form not in FORMS:
    raise ValueError(f"unknown form {form!r}{nearest(form, FORMS)} (known: "
                     f"{', '.join(FORMS)})")
  if form == "auto":
    form = ("plain" if logit_bytes(
        h, vocab if keep is None else keep.shape[0], layout) <= PLAIN_BYTES
            else "stream")
  options = dict(eps=eps, layout=layout, keep=keep, norm_kept=norm_kept)
  if form == "plain":
    return plain_mix(h, w2_vd, scale_v, bias_v, embed_vd, **options)
  scale_v = jnp.ones(vocab) if scale_v is None else scale_v
  bias_v = jnp.zeros(vocab) if bias_v is None else bias_v
  mixed = stream_mix(h, w2_vd, scale_v, bias_v, embed_vd, chunk=chunk,
                     **(options | {"keep": keep}))
  return layout.constrain(mixed, "b..")


def logit_bytes(h: jax.Array, vocab: int, layout: Layout) -> int:
  """Bytes of f32 logits that the plain form would hold on a device."""
  rows = layout.shards(ROWS) if h.shape[0] % layout.shards(ROWS) == 0 else 1
  return 4 * math.prod(h.shape[:2]) // rows * (
      -(-vocab // layout.shards(("tensor",))))
