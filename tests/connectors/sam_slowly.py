"""SAM (arXiv 2408.12867) in numpy, with loops: an image, a layer, a patch at a
time. Weights are a Q-Former's in transformers' names and shapes, and the six
of SAM in its code's: attn, one_2_muliple, multiple_2_one.
"""

import numpy as np

from tests.connectors.upstream import (
    Weights,
    attend,
    gelu,
    layer_norm,
    linear,
    softmax,
)

EPS = 1e-12


def _attention(x: np.ndarray, memory: np.ndarray, seen: np.ndarray,
               w: Weights, name: str, heads: int) -> np.ndarray:
  """BERT's attention block; only `seen` positions of the memory count."""
  memory = memory[seen]
  q = linear(x, w, f"{name}.attention.query")
  k = linear(memory, w, f"{name}.attention.key")
  v = linear(memory, w, f"{name}.attention.value")
  y = linear(attend(q, k, v, heads), w, f"{name}.output.dense")
  return layer_norm(x + y, w, f"{name}.output.LayerNorm", EPS)


def layer(x: np.ndarray, image: np.ndarray, there: np.ndarray, w: Weights,
          number: int, queries: int, heads: int) -> np.ndarray:
  """Layer `number`, from 1: those of odd number look at the image."""
  at = f"qformer.encoder.layer.{number - 1}"
  x = _attention(x, x, there, w, f"{at}.attention", heads)
  visual, text = x[:queries], x[queries:]
  if number % 2 == 1:
    whole = np.ones(len(image), bool)
    visual = _attention(visual, image, whole, w, f"{at}.crossattention", heads)
  parts = []
  for part, kind in ((visual, "_query"), (text, "")):
    if len(part):
      y = gelu(linear(part, w, f"{at}.intermediate{kind}.dense"))
      y = linear(y, w, f"{at}.output{kind}.dense")
      parts.append(layer_norm(part + y, w, f"{at}.output{kind}.LayerNorm",
                              EPS))
  return np.concatenate(parts)


def embedding(ids: np.ndarray, w: Weights) -> tuple[np.ndarray, np.ndarray]:
  """(what enters layer 1, which positions are there)."""
  words = w["qformer.embeddings.word_embeddings.weight"]
  places = w["qformer.embeddings.position_embeddings.weight"]
  text = np.stack([words[t] + places[i] for i, t in enumerate(ids)])
  x = np.concatenate([w["query_tokens"][0], text])
  there = np.concatenate([np.ones(len(w["query_tokens"][0]), bool), ids != 0])
  return layer_norm(x, w, "qformer.embeddings.layernorm", EPS), there


def adjusted(images: list[np.ndarray], w: Weights) -> np.ndarray:
  """Adaptive adjustment: at each patch, a softmax over the images."""
  out = np.zeros_like(images[0])
  for p in range(len(out)):
    scores = np.array([image[p] @ w["attn.weight"][0] + w["attn.bias"][0]
                       for image in images])
    for share, image in zip(softmax(scores), images):
      out[p] += share * image[p]
  return out


def prompt(images: list[np.ndarray], ids: np.ndarray, w: Weights, *, l: int,
           k: int, depth: int, heads: int, others: bool,
           guide_text: bool) -> list[np.ndarray]:
  """The visual tokens of each image of one prompt.

  Args:
    images: [P,C] each.
    ids: the instruction, 0 behind its end.
    l: the layer whose input guides the second stream.
    k: the layer before which the second stream guides back.
    others: the memory of an image's second stream is made of the other
      images alone (paper), not of all (code).
    guide_text: text positions are guided as well (code).
  """
  queries = len(w["query_tokens"][0])
  start, there = embedding(ids, w)
  tokens = []
  for i, image in enumerate(images):
    q = start
    if len(images) > 1:
      memory = adjusted([x for j, x in enumerate(images)
                         if not others or j != i], w)
      states = {1: start}  # the input of each layer, unguided
      for j in range(1, depth + 1):
        states[j + 1] = layer(states[j], image, there, w, j, queries, heads)
      h = linear(states[l], w, "one_2_muliple.0")
      second = start
      for j in range(1, l):
        second = layer(second, memory, there, w, j, queries, heads)
      if not guide_text:
        h[queries:] = 0
      second = second + h
      for j in range(l, k + 1):
        second = layer(second, memory, there, w, j, queries, heads)
      c = linear(second, w, "multiple_2_one.0")
      if not guide_text:
        c[queries:] = 0
      q = states[k] + c
      for j in range(k, depth + 1):
        q = layer(q, image, there, w, j, queries, heads)
    else:
      for j in range(1, depth + 1):
        q = layer(q, image, there, w, j, queries, heads)
    tokens.append(linear(q[:queries], w, "language_projection"))
  return tokens
