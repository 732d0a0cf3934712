"""SAM equals a reference that was written from the paper alone."""

import numpy as np
import pytest

from align_jax.connectors.sam import PRESETS
from align_jax.hub.keymaps import qformer as maps
from tests.connectors import published
from tests.connectors.sam_from_paper import Prompt

C, D, E, HEADS, T, P, WORDS, LENGTH, DEPTH = 5, 6, 8, 2, 2, 3, 9, 4, 12

# Ragged sets: three images; two beside one alone; one alone.
SEGMENTS = np.array([[1, 1, 1], [2, 1, 1], [1, 0, 0]], np.int32)
# What each sample asks, 0 behind its last token.
ASKED = np.array([[[3, 1, 4, 0], [0] * 4], [[5, 8, 2, 6], [5, 3, 0, 0]],
                  [[7, 0, 0, 0], [0] * 4]], np.int32)


def _shapes() -> dict[str, tuple[int, ...]]:
  """Of InstructBLIP's Q-Former and SAM's six, by their names there."""
  found = {"query_tokens": (1, T, E), "attn.weight": (1, C), "attn.bias": (1,),
           "qformer.embeddings.word_embeddings.weight": (WORDS, E),
           "qformer.embeddings.position_embeddings.weight": (LENGTH, E)}
  maps_to = {"language_projection": (D, E), "one_2_muliple.0": (E, E),
             "multiple_2_one.0": (E, E)}
  norms = ["qformer.embeddings.layernorm"]

  def attention(name: str, width: int) -> None:
    for part, read in (("query", E), ("key", width), ("value", width)):
      maps_to[f"{name}.attention.{part}"] = (E, read)
    maps_to[f"{name}.output.dense"] = (E, E)
    norms.append(f"{name}.output.LayerNorm")

  for n in range(DEPTH):
    layer = f"qformer.encoder.layer.{n}"
    attention(f"{layer}.attention", E)
    if n % 2 == 0:
      attention(f"qformer.encoder.look.{n // 2}.crossattention", C)
    for kind in ("", "_query"):
      maps_to[f"{layer}.intermediate{kind}.dense"] = (7, E)
      maps_to[f"{layer}.output{kind}.dense"] = (E, 7)
      norms.append(f"{layer}.output{kind}.LayerNorm")
  for name, shape in maps_to.items():
    found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
  for name in norms:
    found |= {f"{name}.weight": (E,), f"{name}.bias": (E,)}
  return found


def _tensors() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(11)
  found = {}
  for name, shape in _shapes().items():
    x = rng.normal(size=shape)
    if "orm.weight" in name:
      x = 1 + 0.2 * x
    elif name.endswith("bias"):
      x = 0.3 * x
    elif ".dense.weight" in name or "value.weight" in name:
      x = x * shape[-1] ** -0.5  # so that no layer forgets what came before
    elif "query.weight" in name or "key.weight" in name:
      x = 0.7 * x  # attention is neither uniform nor of one place
    found[name] = x.astype(np.float32)
  return found


@pytest.mark.parametrize("layers,preset", [
    pytest.param((l, k), preset, id=f"l{l}k{k}-{preset}", marks=(
        () if (l, preset) == (3, "released_code") else pytest.mark.slow))
    for l, k in ((1, 1), (3, 9), (12, 12))
    for preset in ("released_code", "paper")])
def test_the_tokens_are_those_of_the_papers_equations(layers, preset):
  features = np.random.default_rng(5).normal(
      size=(*SEGMENTS.shape, P, C)).astype(np.float32)
  ctx = published.context(SEGMENTS, D, instruction=ASKED)
  module = published.make(
      "sam", D, depth=DEPTH, queries=T, width=E, heads=HEADS, mlp_width=7,
      words=WORDS, positions=LENGTH, instruction_length=LENGTH, preset=preset,
      layer_h=layers[0], layer_c=layers[1])
  tensors = _tensors()
  params = published.load(published.shapes_of(module, features, ctx),
                          maps.SAM, tensors)
  got = np.asarray(published.apply(module, params, features, ctx).tokens)

  exact = {k: v.astype(np.float64) for k, v in tensors.items()}
  chosen = PRESETS[preset]
  apart = []
  for row, segments in enumerate(SEGMENTS):
    for sample in sorted(set(segments.tolist()) - {0}):
      slots = np.flatnonzero(segments == sample)
      asked = ASKED[row, sample - 1]
      prompt = Prompt(exact, asked[asked > 0].tolist(),
                      [list(features[row, s].astype(np.float64))
                       for s in slots], HEADS, DEPTH)
      for i, slot in enumerate(slots):
        want = prompt.tokens_of(i, *layers, chosen["memory"],
                                chosen["guide_text"])
        assert want.std() > 0.3
        assert np.abs(got[row, slot] - want).max() < 1e-4 * max(
            1, want.std())
      if len(slots) > 1:
        prompt.images = prompt.images[:1]
        apart.append(np.abs(prompt.tokens_of(
            0, *layers, "all", True) - got[row, slots[0]]).max())
  assert min(apart) > 1e-2  # guidance is no detail
