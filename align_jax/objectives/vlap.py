"""VLAP: image and caption should choose the same words of the LLM.

Source: 2404.09632 (ICLR 2024) and its code: the frozen word embeddings are
codes; optimal transport spreads a batch's images (and captions) evenly over
them (Sinkhorn, 3 turns, epsilon 0.01); each side then predicts the other's
assignment by a softmax over cosines at temperature 0.01. The image is the
mean of its visual tokens.
"""

from typing import Any

import jax
import jax.numpy as jnp

from align_jax.config import Config
from align_jax.objectives.pooled import pool, present
from align_jax.objectives.sea import unit
from align_jax.parallel.layout import Layout


def sinkhorn(scores_nv: jax.Array, keep: jax.Array, epsilon: float = 0.01,
             turns: int = 3) -> jax.Array:
  """Assignments of N things to V codes, each code used equally.

  Args:
    scores_nv: f32[N,V] cosines.
    keep: b[N]; what is not kept is assigned to nothing.
    epsilon: how soft the assignments are.
    turns: of normalising codes, then things.

  Returns:
    f32[N,V], a distribution over codes for each kept thing. In logarithms,
    since exp(1 / epsilon) is no number of f32's.
  """
  log_q = jnp.where(keep[:, None], scores_nv / epsilon, -jnp.inf)
  count = jnp.log(jnp.maximum(keep.sum(), 1).astype(jnp.float32))
  codes = jnp.log(jnp.float32(scores_nv.shape[1]))
  finite = lambda x: jnp.where(jnp.isfinite(x), x, 0.0)
  for _ in range(turns):
    log_q -= finite(jax.nn.logsumexp(log_q, axis=0)) + codes
    log_q -= finite(jax.nn.logsumexp(log_q, axis=1, keepdims=True)) + count
  return jnp.exp(log_q + count)


class Vlap:
  """Swapped assignment prediction; see the module.

  Options:
    temperature: of the predictions.
    epsilon: of the optimal transport.
    turns: of its Sinkhorn iteration.
  """

  coupled = True
  model = "vlm"

  def __init__(self, config: Config, temperature: float = 0.01,
               epsilon: float = 0.01, turns: int = 3):
    del config
    self.temperature, self.epsilon, self.turns = temperature, epsilon, turns

  def weight(self, batch: dict[str, Any], rng: jax.Array | None = None,
             layout: Layout | None = None) -> jax.Array:
    """The samples with an image and a labelled word, f32[]."""
    del rng, layout
    return present(batch).sum().astype(jnp.float32)

  def __call__(self, outputs: dict[str, Any], batch: dict[str, Any],
               rng: jax.Array, layout: Layout) -> jax.Array:
    """1/2 the two cross-entropies, summed over samples, f32[]."""
    del rng
    image, text, keep = pool(outputs, batch, layout)
    codes = unit(jax.lax.stop_gradient(outputs["embed_vd"]))
    keep = keep.reshape(-1)
    scores = [unit(x).reshape(-1, x.shape[-1]) @ codes.T
              for x in (image, text)]
    assigned = [jax.lax.stop_gradient(sinkhorn(
        s, keep, self.epsilon, self.turns)) for s in scores]
    loss = 0.0
    for own, others in zip(scores, assigned[::-1]):
      log_p = jax.nn.log_softmax(own / self.temperature, axis=-1)
      loss -= jnp.where(keep, (others * log_p).sum(-1), 0.0).sum()
    return 0.5 * loss
