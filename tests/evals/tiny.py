"""A tiny random model, prompts over it, and the slow way to answer them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.connectors.linear import Linear
from align_jax.decoders.transformer import Decoder, DecoderConfig
from align_jax.evals.prompts import Prompt
from align_jax.parallel.layout import Layout
from align_jax.towers import TOWERS
from align_jax.vlm import VLM

V, D, T, SIZE = 60, 16, 4, 8
STOP = 39
LONGEST = 32
WITHOUT_MESH = Layout()


def model_and_params(layout: Layout = WITHOUT_MESH, seed: int = 0):
  """A VLM whose attention and logits are far from uniform."""
  tower = TOWERS.get("siglip")(
      image_size=SIZE, patch_size=4, width=8, layers=1, heads=2, mlp_width=8)
  config = DecoderConfig(vocab_size=V, width=D, layers=2, heads=4, kv_heads=2,
                         mlp_width=24)
  model = VLM(tower.make(dtype=jnp.float32, layout=layout),
              Linear(dim_out=D, vocab_size=V, layout=layout),
              Decoder(config, layout=layout), layout)
  batch = {
      "tokens": jnp.zeros((1, 8), jnp.int32),
      "visual_index": jnp.full((1, 8), -1),
      "positions": jnp.arange(8)[None], "segment_ids": jnp.ones((1, 8), int),
      "images": jnp.zeros((1, 1, SIZE, SIZE, 3), jnp.uint8),
      "image_boxes": jnp.array([[[0, 0, SIZE, SIZE]]]),
      "image_segment_ids": jnp.ones((1, 1), jnp.int32)}
  shapes = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
  rng = np.random.default_rng(seed)
  params = jax.tree.map_with_path(
      lambda path, s: jnp.asarray(
          rng.normal(size=s.shape).astype("f")
          * (0.5 if "layers" in str(path) else 1.0)), shapes)
  return model, params


def image_sets(count: int, per_set: int = 1, seed: int = 1):
  """read(key) for keys 0 .. count - 1."""
  pixels = np.random.default_rng(seed).integers(
      0, 256, (count, per_set, SIZE, SIZE, 3), np.uint8)
  boxes = np.tile(np.array([0, 0, SIZE, SIZE], np.int32), (per_set, 1))
  return lambda key: (pixels[key], boxes)


def prompt(rng, key, head: int = 3, tail: int = 4, images: int = 1) -> Prompt:
  """head text tokens (fixed), the images' tokens, tail random tokens."""
  visual = np.arange(images * T) if key is not None else np.zeros(0, int)
  tokens = np.concatenate([np.arange(10, 10 + head), np.zeros(len(visual)),
                           rng.integers(10, V, tail)])
  index = np.concatenate([np.full(head, -1), visual, np.full(tail, -1)])
  return Prompt(tokens.astype(np.int32), index.astype(np.int32), key)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, batch):
  out = model.apply({"params": params}, batch)
  return out["hidden"][0] @ out["head_vd"].T


def logits_slowly(model, params, prompt: Prompt, read, answer=()):
  """f32[n + len(answer), V]: one row, no cache.

  The row goes on to a fixed length, for the compiler's sake; what comes after
  is padding.
  """
  tokens = np.concatenate([prompt.tokens, np.array(answer, int)])
  n = len(tokens)
  fill = lambda x, value: np.pad(x, (0, LONGEST - len(x)),
                                 constant_values=value)[None]
  images, boxes = (read(prompt.images) if prompt.images is not None else
                   (np.zeros((1, SIZE, SIZE, 3), np.uint8),
                    np.zeros((1, 4), np.int32)))
  batch = {
      "tokens": fill(tokens.astype(np.int32), 0),
      "visual_index": fill(prompt.visual, -1),
      "positions": np.arange(LONGEST)[None],
      "segment_ids": (np.arange(LONGEST)[None] < n).astype(int),
      "images": images[None], "image_boxes": boxes[None],
      "image_segment_ids": np.full(
          (1, len(images)), int(prompt.images is not None))}
  return np.asarray(_logits(model, params, batch))[:n]


def greedy_slowly(model, params, prompt, read, max_new_tokens):
  """The answer, recomputing everything for each token."""
  answer: list[int] = []
  while len(answer) < max_new_tokens:
    token = int(logits_slowly(model, params, prompt, read, answer)[-1]
                .argmax())
    if token == STOP:
      break
    answer.append(token)
  return answer
