"""The Q-Former against those of transformers' BLIP-2 and InstructBLIP."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # tiny models: threads only wait for each other

from align_jax.hub.keymaps import qformer as maps  # noqa: E402
from tests.connectors import published  # noqa: E402
from tests.parity.towers_reference import difference, randomise  # noqa: E402

C, D, E, T, WORDS, LENGTH = 10, 12, 16, 3, 29, 6

# Depths: the published one, odd, less than a period.
SIZES = {"real": dict(depth=12), "odd": dict(depth=3), "one": dict(depth=1),
         "period": dict(depth=7, period=3)}


def _reference(kind: str, depth: int, period: int) -> tuple[Any, dict]:
  """(transformers' Q-Former, its and its model's tensors)."""
  shared = dict(
      vocab_size=WORDS, hidden_size=E, num_hidden_layers=depth,
      num_attention_heads=4, intermediate_size=24,
      cross_attention_frequency=period, encoder_hidden_size=C,
      max_position_embeddings=LENGTH + 2)
  if kind == "instructblip":
    config = transformers.InstructBlipQFormerConfig(**shared)
    make = transformers.InstructBlipQFormerModel
  else:
    config = transformers.Blip2QFormerConfig(**shared,
                                             use_qformer_text_input=False)
    make = transformers.Blip2QFormerModel
  config._attn_implementation = "eager"
  former = make(config).eval()
  randomise(former)
  with torch.no_grad():  # attention far from uniform
    for name, value in former.named_parameters():
      if ".query.weight" in name or ".key.weight" in name:
        value.mul_(2)
  rng = np.random.default_rng(1)
  tensors = {f"qformer.{k}": v.numpy() for k, v in
             former.state_dict().items()}
  return former, tensors | {
      "query_tokens": rng.normal(size=(1, T, E)).astype("f"),
      "language_projection.weight": (
          rng.normal(size=(D, E)) * E ** -0.5).astype("f"),
      "language_projection.bias": rng.normal(size=D).astype("f")}


def _lavis(name: str) -> str:
  """The same weight's name in LAVIS' checkpoints."""
  name = name.replace("qformer.embeddings.layernorm",
                      "qformer.embeddings.LayerNorm")
  name = name.replace("attention.attention.", "attention.self.")
  return name.replace("qformer.", "Qformer.bert.").replace(
      "language_projection.", "llm_proj.")


def _batch(text: bool) -> tuple[np.ndarray, Any]:
  """Row 0: two images of a sample and one of another; row 1: an empty slot."""
  rng = np.random.default_rng(2)
  features = rng.normal(size=(2, 3, 5, C)).astype("f")
  ids = rng.integers(1, WORDS, (2, 2, LENGTH)).astype("i")
  ids[0, 1, 4:] = 0
  ids[1, 0, 1:] = 0
  segments = np.array([[1, 1, 2], [1, 2, 0]], "i")
  extras = {"instruction": ids} if text else {}
  return features, published.context(segments, D, **extras)


def _theirs(former: Any, tensors: dict, features: np.ndarray,
            ctx: Any) -> tuple[Any, np.ndarray]:
  """(tokens of every image, where in [B,N] they belong)."""
  segments = np.asarray(ctx.image_segment_ids)
  where = np.argwhere(segments > 0)
  images = torch.from_numpy(np.stack([features[b, n] for b, n in where]))
  queries = torch.from_numpy(tensors["query_tokens"]).expand(
      len(where), -1, -1)
  options = {}
  if "instruction" in ctx.extras:
    ids = np.asarray(ctx.extras["instruction"])
    ids = np.stack([ids[b, segments[b, n] - 1] for b, n in where])
    ids = torch.from_numpy(ids).long()
    options = dict(input_ids=ids, attention_mask=torch.cat(
        [torch.ones(queries.shape[:2]), (ids != 0)], dim=1).long())
  with torch.no_grad():
    out = former(query_embeds=queries, encoder_hidden_states=images,
                 encoder_attention_mask=torch.ones(images.shape[:2]),
                 **options)[0]
    tokens = torch.nn.functional.linear(
        out[:, :T], torch.from_numpy(tensors["language_projection.weight"]),
        torch.from_numpy(tensors["language_projection.bias"]))
  return tokens, where


@pytest.mark.parametrize("kind", ["blip2", "instructblip"])
@pytest.mark.parametrize("size", [
    name if name == "real" else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(SIZES)])
def test_tokens(kind: str, size: str) -> None:
  sizes = {"period": 2} | SIZES[size]
  former, tensors = _reference(kind, **sizes)
  features, ctx = _batch(kind == "instructblip")
  theirs, where = _theirs(former, tensors, features, ctx)
  assert theirs.std() > 0.5
  module = published.make(
      "qformer", D, queries=T, width=E, heads=4, mlp_width=24, words=WORDS,
      positions=LENGTH + 2, text=kind == "instructblip",
      instruction_length=LENGTH, **sizes)
  shapes = published.shapes_of(module, features, ctx)
  rules = maps.INSTRUCTBLIP if kind == "instructblip" else maps.BLIP2
  load = lambda tensors: published.load(
      shapes, rules, tensors, rename=maps.rename(**sizes),
      ignored=maps.IGNORED)
  params = load(tensors)
  run = lambda params: np.asarray(published.apply(
      module, params, features, ctx).tokens)[tuple(where.T)]
  assert difference(run(params), theirs) < 1e-4
  if size != "real":
    return
  other = load({_lavis(k): v for k, v in tensors.items()})
  np.testing.assert_array_equal(
      other["stack"]["cross"]["layers"]["k_chk"],
      params["stack"]["cross"]["layers"]["k_chk"])
  if kind == "instructblip":  # what makes it differ from BLIP-2 matters
    swapped = dict(params["stack"]["layers"])
    swapped["text_up_ef"] = swapped["query_up_ef"]
    stack = params["stack"] | {"layers": swapped}
    assert difference(run(params | {"stack": stack}), theirs) > 1e-2
