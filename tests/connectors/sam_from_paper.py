"""SAM in numpy and loops, written from the paper's equations alone.

One prompt, one image, one layer, one head, one position at a time; nothing is
stacked and nothing is masked. It was written without sight of
align_jax/connectors/sam.py, so that one misreading cannot sit in both. Weights
go by the names that InstructBLIP's checkpoint and SAM's have for them.
"""

import math

import numpy as np

Weights = dict[str, np.ndarray]

EPS = 1e-12


def _affine(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
  return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def _norm(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
  centred = x - sum(x) / len(x)
  variance = sum(centred ** 2) / len(x)
  return (centred / math.sqrt(variance + EPS) * w[f"{name}.weight"]
          + w[f"{name}.bias"])


def _gelu(x: np.ndarray) -> np.ndarray:
  return np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])


def _soft(scores: list[float]) -> list[float]:
  powers = [math.exp(s - max(scores)) for s in scores]
  return [p / sum(powers) for p in powers]


def _attend(w: Weights, name: str, asking: list[np.ndarray],
            read: list[np.ndarray], heads: int) -> list[np.ndarray]:
  """Each of `asking` reads all of `read`; residual and norm behind it."""
  keys = [_affine(w, f"{name}.attention.key", x) for x in read]
  values = [_affine(w, f"{name}.attention.value", x) for x in read]
  out = []
  for x in asking:
    query = _affine(w, f"{name}.attention.query", x)
    size = len(query) // heads
    found = []
    for h in range(heads):
      part = slice(h * size, (h + 1) * size)
      share = _soft([float(query[part] @ key[part]) / math.sqrt(size)
                     for key in keys])
      found.append(sum(s * v[part] for s, v in zip(share, values)))
    y = _affine(w, f"{name}.output.dense", np.concatenate(found))
    out.append(_norm(w, f"{name}.output.LayerNorm", y + x))
  return out


def _feed(w: Weights, layer: str, kind: str, x: np.ndarray) -> np.ndarray:
  y = _gelu(_affine(w, f"{layer}.intermediate{kind}.dense", x))
  y = _affine(w, f"{layer}.output{kind}.dense", y)
  return _norm(w, f"{layer}.output{kind}.LayerNorm", y + x)


class Prompt:
  """One prompt: its instruction's tokens, and its images' features.

  Args:
    w: weights by their published names, `{n}` of looks counted over layers
      that look (layer 2 looks with look.1).
    tokens: the instruction, without padding.
    images: each P vectors of width C.
    heads: of every attention.
    depth: layers; layer 1 is the first, as in the paper.
    period: layers 1, 1 + period, ... look at an image.
  """

  def __init__(self, w: Weights, tokens: list[int],
               images: list[list[np.ndarray]], heads: int, depth: int = 12,
               period: int = 2) -> None:
    self.w, self.tokens, self.images = w, tokens, images
    self.heads, self.depth, self.period = heads, depth, period
    self.queries = len(w["query_tokens"][0])

  def start(self) -> list[np.ndarray]:
    """[queries ; words + places], behind one norm."""
    w = self.w
    states = list(w["query_tokens"][0])
    for place, token in enumerate(self.tokens):
      states.append(w["qformer.embeddings.word_embeddings.weight"][token]
                    + w["qformer.embeddings.position_embeddings.weight"][place])
    return [_norm(w, "qformer.embeddings.layernorm", x) for x in states]

  def layer(self, j: int, states: list[np.ndarray],
            memory: list[np.ndarray]) -> list[np.ndarray]:
    """F_j(states; memory), j from 1."""
    name = f"qformer.encoder.layer.{j - 1}"
    states = _attend(self.w, f"{name}.attention", states, states, self.heads)
    queries, text = states[:self.queries], states[self.queries:]
    if (j - 1) % self.period == 0:
      look = f"qformer.encoder.look.{(j - 1) // self.period}.crossattention"
      queries = _attend(self.w, look, queries, memory, self.heads)
    return ([_feed(self.w, name, "_query", x) for x in queries]
            + [_feed(self.w, name, "", x) for x in text])

  def adjusted(self, among: list[int]) -> list[np.ndarray]:
    """The one memory that these images give, place by place."""
    w, memory = self.w, []
    for place in range(len(self.images[0])):
      here = [self.images[j][place] for j in among]
      share = _soft([float(w["attn.weight"][0] @ x + w["attn.bias"][0])
                     for x in here])
      memory.append(sum(s * x for s, x in zip(share, here)))
    return memory

  def tokens_of(self, i: int, layer_h: int, layer_c: int, memory: str,
                guide_text: bool) -> np.ndarray:
    """V_i f[T,D].

    Args:
      i: which image.
      layer_h: l, from 1.
      layer_c: k >= l.
      memory: "all" images of the prompt, or the "others".
      guide_text: guidance goes to words' positions too.
    """
    guided = (self.queries + len(self.tokens) if guide_text
              else self.queries)

    def guide(to: list[np.ndarray], by: list[np.ndarray],
              name: str) -> list[np.ndarray]:
      return [x + _affine(self.w, name, y) if p < guided else x
              for p, (x, y) in enumerate(zip(to, by))]

    q = self.start()
    if len(self.images) == 1:
      for j in range(1, self.depth + 1):
        q = self.layer(j, q, self.images[0])
    else:
      among = [j for j in range(len(self.images))
               if memory == "all" or j != i]
      context = self.adjusted(among)
      w = self.start()
      for j in range(1, self.depth + 1):
        if j == layer_h:
          w = guide(w, q, "one_2_muliple.0")
        if j <= layer_c:
          w = self.layer(j, w, context)
        if j == layer_c:
          q = guide(q, w, "multiple_2_one.0")
        q = self.layer(j, q, self.images[i])
    return np.stack([_affine(self.w, "language_projection", x)
                     for x in q[:self.queries]])
