"""The ALIGN mix: a softmax over the vocabulary, then a mean of embeddings.

AlignVLM (arXiv 2502.01341), Eq. 1 and 2, from the normalised projected patch
h on:

  P  = softmax(LayerNorm(W2 h))        Eq. 1
  F' = sum_v P_v E_v                   Eq. 2

It is attention with queries h, keys W2 and values E; N visual tokens meet V
words. This is the plain form, which holds P f32[N,V]; forms that never do
belong behind the same entry and are compared with this one.
"""

import jax
import jax.numpy as jnp

from align_jax.ops.norms import layer_norm
from align_jax.parallel.layout import Layout


def vocab_probs(
    h: jax.Array,
    w2_vd: jax.Array,
    scale_v: jax.Array | None,
    bias_v: jax.Array | None,
    *,
    eps: float = 1e-5,
    layout: Layout = Layout(),
) -> jax.Array:
  """Eq. 1: the distribution over words of each visual token.

  Args:
    h: f[B,N,D], rows, visual tokens of a row, the LLM's width.
    w2_vd: f[V,D], starts as a copy of the LM head.
    scale_v: f[V] affine of the LayerNorm over the vocabulary, or None.
    bias_v: f[V] or None.
    eps: of that LayerNorm.
    layout: where activations live.

  Returns:
    f32[B,N,V], rows sum to one. f32 from the logits on: with V(0,1) logits
    the largest of 128k probabilities is about 5e-4, and bf16 would wash out
    the deviations that carry the image.
  """
  # Gathered over fsdp here and once: left to itself the compiler turns the
  # product into a loop that passes pieces of the table around.
  w2_vd = layout.constrain(w2_vd, "v.")
  logits = jnp.einsum("bnd,vd->bnv", h, w2_vd,
                      preferred_element_type=jnp.float32)
  logits = layout.constrain(logits, "b.v")
  return jax.nn.softmax(layer_norm(logits, scale_v, bias_v, eps), axis=-1)


def vocab_mix(
    h: jax.Array,
    w2_vd: jax.Array,
    scale_v: jax.Array | None,
    bias_v: jax.Array | None,
    embed_vd: jax.Array,
    *,
    eps: float = 1e-5,
    layout: Layout = Layout(),
) -> jax.Array:
  """Eq. 1 and 2: f[B,N,D] -> f[B,N,D], a point in the hull of E's rows.

  Arguments as in `vocab_probs`; embed_vd f[V,D] is the LLM's live table. The
  sum accumulates in f32; the result has h's dtype.
  """
  probs = vocab_probs(h, w2_vd, scale_v, bias_v, eps=eps, layout=layout)
  embed_vd = layout.constrain(embed_vd, "v.")
  mixed = jnp.einsum("bnv,vd->bnd", probs, embed_vd,
                     preferred_element_type=jnp.float32)
  return layout.constrain(mixed, "b..").astype(h.dtype)
