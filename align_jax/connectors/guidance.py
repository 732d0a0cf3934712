"""Images of one prompt guide each other's token extraction (SAM).

  image i   q: start --F_1..F_{l-1}--> h_i --F_l..F_{k-1}--> + c_i
                                        |                     |
                                        W_h                  W_c
                                        |                     |
  memory    w: start --F_1..F_{l-1}-->  +  --F_l .. F_k-------+
                                              q --F_k..F_depth--> tokens

F_j is the extractor's own layer j, looking at image i in the first stream and
at the memory in the second: the images of the prompt, averaged at each patch
with weights by a softmax over them (adaptive adjustment). W_h and W_c start at
zero, so that at first nothing is changed, and only W_c receives gradient.

Up to layer l the second stream does not depend on the image that it will
guide; where the memory does not either ("all"), it is computed once a prompt:
for as many as can be of two images or more, since an image alone is not guided.
(arXiv 2408.12867, figure 3, and the authors' sam/models/sam; 1 <= l <= k <=
depth, counted from 1. The published code fixes l = k = depth.)
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.connectors.qformer import take_samples
from align_jax.errors import InputError
from align_jax.parallel.layout import Layout
from align_jax.registry import nearest

# What the second stream of image i looks at. The last two are controls.
MEMORIES = (
    "all",  # the prompt's images, i among them: one memory a prompt
    "others",  # those but i; of two images, simply the other
    "self",  # i alone
    "elsewhere",  # the images of the row before, in a batch
)

# run(x f[B,M,L,E], memory f[B,M,P,C], at i32[B,M], first, last, stream=):
# layers first to last (from 0, last excluded) -> f[B,M,L,E]. `at` is the sample
# of each of M slots; streams draw apart.
Run = Callable[..., jax.Array]


class CrossImageGuidance(nn.Module):
  """What is trained: six tensors, two maps and the score of a patch.

  Parameters (c the memory's width, e the extractor's):
    score_c, score_bias    the adaptive adjustment; the bias cancels in the
                           softmax, and its gradient is zero
    h_eo h_bias_o          W_h and its bias
    c_eo c_bias_o          W_c and its bias

  Attributes:
    layer_h: l.
    layer_c: k.
    depth: of the extractor.
    memory: one of MEMORIES.
    guided: positions that are guided, from the first; 0 is all.
    reuse: False computes the second stream for each image from the start, as
      the published code does; with the same result.
  """
  layer_h: int
  layer_c: int
  depth: int
  memory: str
  guided: int = 0
  reuse: bool = True
  dtype: Any = jnp.float32
  layout: Layout = Layout()

  @nn.compact
  def __call__(self, run: Run, start: jax.Array, places: jax.Array,
               images: jax.Array, segments: jax.Array) -> jax.Array:
    """The extractor's last state of each image.

    Args:
      run: the extractor's layers.
      start: f[B,S,L,E], the first layer's input for each sample.
      places: i32[B,N], the sample of each image.
      images: f[B,N,P,C], what the layers look at.
      segments: i32[B,N], 0 for an empty slot.

    Returns:
      f[B,N,L,E]. An image alone in its prompt is not guided.

    Raises:
      InputError: layers or a memory that there are not.
    """
    l, k = self.layer_h, self.layer_c
    check_layers(l, k, self.depth)
    if self.memory not in MEMORIES:
      raise InputError(f"memory {self.memory!r} is none of "
                       f"{', '.join(MEMORIES)}{nearest(self.memory, MEMORIES)}")
    together = ((segments[:, :, None] == segments[:, None, :])
                & (segments > 0)[:, None, :])  # b[B,N,N]: j is seen with i
    seen, images_seen = self._seen(together, images, segments)
    at, back = places, lambda x: x
    if self.memory == "all" and self.reuse:
      lead, slot = prompts(together, start.shape[1])
      at, seen = take_samples(places, lead), take_samples(seen, lead)
      back = lambda x: take_samples(x, slot)
    memory = self._memory(images_seen, seen)

    first = functools.partial(run, stream=0)
    q = first(take_samples(start, places), images, places, 0, l - 1)
    w = back(run(take_samples(start, at), memory, at, 0, l - 1, stream=1))
    memory = back(memory)
    w = w + self._guide("h", q)
    w = run(w, memory, places, l - 1, k, stream=2)
    q = first(q, images, places, l - 1, k - 1)
    alone = together.sum(-1) < 2
    c = jnp.where(alone[..., None, None], 0, self._guide("c", w))
    return first(q + c, images, places, k - 1, self.depth)

  def _guide(self, name: str, x: jax.Array) -> jax.Array:
    """A map that starts at zero: f[B,N,L,E] -> f[B,N,L,E]."""
    zeros, e = nn.initializers.zeros, x.shape[-1]
    weight = self.param(f"{name}_eo", zeros, (e, e)).astype(self.dtype)
    bias = self.param(f"{name}_bias_o", zeros, (e,)).astype(self.dtype)
    length = x.shape[-2]
    guided = min(self.guided or length, length)
    y = x[..., :guided, :] @ weight + bias
    spare = [(0, 0)] * (y.ndim - 2) + [(0, length - guided), (0, 0)]
    return self.layout.constrain(jnp.pad(y, spare), "b...")

  def _seen(self, together: jax.Array, images: jax.Array,
            segments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which images f[B,N,P,C] make up each one's memory, as b[B,N,N]."""
    own = jnp.eye(segments.shape[1], dtype=bool)
    if self.memory != "elsewhere":
      return {"all": together, "others": together & ~own,
              "self": together & own}[self.memory], images
    # The row before, of those with images; a row alone has an empty memory.
    there = (segments > 0).any(1)
    rows = jnp.argsort(~there, stable=True)
    rank = jnp.cumsum(there) - 1
    row = rows[(rank - 1) % jnp.maximum(there.sum(), 1)]
    other = (row != jnp.arange(len(rows)))[:, None] & (segments[row] > 0)
    return jnp.broadcast_to(other[:, None], together.shape), images[row]

  def _memory(self, images: jax.Array, seen: jax.Array) -> jax.Array:
    """The images f[B,N,P,C] that are seen b[B,M,N], as one: f[B,M,P,C].

    Zeros where none is.
    """
    c = images.shape[-1]
    bound = c ** -0.5
    uniform = lambda key, shape: jax.random.uniform(
        key, shape, jnp.float32, -bound, bound)  # as torch's Linear starts
    score_c = self.param("score_c", uniform, (c,))
    score_bias = self.param("score_bias", uniform, (1,))
    scores = jnp.einsum("bnpc,c->bnp", images.astype(jnp.float32),
                        score_c.astype(jnp.float32)) + score_bias
    logits = jnp.where(seen[..., None], scores[:, None], -jnp.inf)
    # A maximum of nothing is -inf, and -inf - -inf is no number.
    top = jnp.maximum(logits.max(2, keepdims=True), -1e30)
    shares = jnp.exp(logits - jax.lax.stop_gradient(top))
    shares = shares / jnp.maximum(shares.sum(2, keepdims=True), 1e-30)
    # Images are a handful: too few to contract over in a matrix unit.
    memory = (shares[..., None] * images[:, None]).sum(2).astype(self.dtype)
    return self.layout.constrain(memory, "b...")


def prompts(together: jax.Array, samples: int) -> tuple[jax.Array, jax.Array]:
  """One image for each prompt of two or more, and which is each image's.

  Args:
    together: b[B,N,N], whether image j is of the prompt of image i.
    samples: as many as a row may hold.

  Returns:
    (i32[B,M] images, i32[B,N] their places among these M); of an image alone,
    which is not guided, any.
  """
  n = together.shape[1]
  most = max(min(n // 2, samples), 1)
  first = jnp.argmax(together, axis=-1)
  leads = (first == jnp.arange(n)) & (together.sum(-1) > 1)
  lead = jnp.argsort(~leads, axis=1, stable=True)[:, :most]
  rank = jnp.take_along_axis(jnp.cumsum(leads, axis=1) - 1, first, axis=1)
  return lead, jnp.clip(rank, 0, most - 1)


def check_layers(layer_h: int, layer_c: int, depth: int) -> None:
  """Refuses layers that do not follow one another.

  Raises:
    InputError: not 1 <= layer_h <= layer_c <= depth.
  """
  if not 1 <= layer_h <= layer_c <= depth:
    raise InputError(
        f"layer_h = {layer_h} and layer_c = {layer_c}: what guides back comes "
        f"after what it is made of, so 1 <= layer_h <= layer_c <= {depth}")
