"""The contrastive loss against loops, in every direction it could slip."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.config import MeshConfig
from align_jax.objectives import OBJECTIVES
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh

LOSS = OBJECTIVES.get("contrastive")(None)


@jax.jit
def loss_of(outputs: dict[str, Any], batch: dict[str, Any]) -> jax.Array:
  return LOSS(outputs, batch, None, Layout())


VALUE_AND_GRAD = jax.jit(jax.value_and_grad(loss_of))


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
  x = rng.normal(size=shape)
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def example(captions: list[str], no_image: tuple[int, ...] = (),
            no_text: tuple[int, ...] = (), seed: int = 0
            ) -> tuple[dict[str, Any], dict[str, Any]]:
  """(outputs, batch): a caption is a word, a letter a token."""
  rng = np.random.default_rng(seed)
  rows, length = len(captions), 6
  # What stands in padding must not matter.
  tokens = rng.integers(0, 99, (rows, length)).astype(np.int32)
  segments = np.zeros((rows, length), np.int32)
  for r, caption in enumerate(captions):
    if r not in no_text:
      tokens[r, :len(caption)] = [ord(letter) for letter in caption]
      segments[r, :len(caption)] = 1
  images = np.ones((rows, 1), np.int32)
  images[list(no_image)] = 0
  return (
      dict(image_embeds=unit(rng, rows, 5), text_embeds=unit(rng, rows, 5),
           logit_scale=np.float32(2.0)),
      dict(tokens=tokens, segment_ids=segments, image_segment_ids=images))


def slow(outputs: dict[str, Any], captions: list[str],
         left_out: tuple[int, ...] = ()) -> float:
  """The same by the definition, one pair at a time."""
  a = np.asarray(outputs["image_embeds"], np.float64)
  b = np.asarray(outputs["text_embeds"], np.float64)
  scale = min(math.exp(outputs["logit_scale"]), 100.0)
  rows = [r for r in range(len(captions)) if r not in left_out]
  total = 0.0
  for i, (own, other) in itertools.product(rows, ((a, b), (b, a))):
    logits = {j: scale * float(own[i] @ other[j]) for j in rows}
    top = max(logits.values())
    norm = top + math.log(sum(math.exp(x - top) for x in logits.values()))
    right = [j for j in rows if captions[j] == captions[i]]
    total += 0.5 * sum(norm - logits[j] for j in right) / len(right)
  return total


@pytest.mark.parametrize("captions, no_image, no_text", [
    (["ab", "cd", "ef", "gh"], (), ()),          # CLIP's own loss
    (["ab", "cd", "ab", "ab", "cd", "x"], (), ()),  # joint positives
    (["ab", "abc", "ab", "abcd"], (), ()),       # a beginning is not the same
    (["ab", "cd", "ab", "cd"], (2,), ()),
    (["ab", "cd", "ab", "cd", "e"], (0,), (3,)),
])
def test_equals_the_loops(captions, no_image, no_text) -> None:
  outputs, batch = example(captions, no_image, no_text)
  got = loss_of(outputs, batch)
  want = slow(outputs, captions, no_image + no_text)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert LOSS.weight(batch) == len(captions) - len(no_image + no_text)


def test_distinct_captions_give_the_plain_loss() -> None:
  """Figure 3 of the paper, without any notion of positives."""
  outputs, batch = example(["ab", "cd", "ef"])
  logits = math.exp(2.0) * outputs["image_embeds"] @ outputs["text_embeds"].T
  place = jnp.arange(3)
  plain = sum(-jax.nn.log_softmax(x)[place, place].sum()
              for x in (logits, logits.T)) / 2
  np.testing.assert_allclose(
      loss_of(outputs, batch), plain, rtol=1e-6)


def test_left_out_rows_are_no_negatives_and_get_no_gradient() -> None:
  outputs, batch = example(["ab", "cd", "ab", "gh"], no_image=(1,),
                           no_text=(3,))
  _, grads = VALUE_AND_GRAD(outputs, batch)
  for name in ("image_embeds", "text_embeds"):
    rows = np.abs(grads[name]).sum(-1)
    assert (rows[[1, 3]] == 0).all() and (rows[[0, 2]] > 0).all()


def test_nothing_to_compare_is_zero_not_nan() -> None:
  outputs, batch = example(["ab", "cd"], no_image=(0, 1))
  value, grads = VALUE_AND_GRAD(outputs, batch)
  assert value == 0 and LOSS.weight(batch) == 0
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_the_temperature_is_learnt_and_clipped() -> None:
  outputs, batch = example(["ab", "cd", "ab"])

  at = lambda scale: VALUE_AND_GRAD(
      outputs | {"logit_scale": np.float32(scale)}, batch)
  assert at(2.0)[1]["logit_scale"] != 0
  value, grads = at(9.0)
  np.testing.assert_allclose(value, at(math.log(100.0))[0], rtol=1e-6)
  assert grads["logit_scale"] == 0


@pytest.mark.parametrize("mesh", [
    MeshConfig(data=8), MeshConfig(replica=2, data=2, fsdp=2),
    MeshConfig(data=2, fsdp=2, tensor=2)])
def test_eight_devices_equal_one(mesh: MeshConfig) -> None:
  """The loss is over the global batch, wherever its rows are."""
  captions = [*"abca", "a", "b", "de", "e"]
  outputs, batch = example(captions, no_image=(5,))
  outputs = {k: jnp.asarray(v) for k, v in outputs.items()}
  grid = make_mesh(mesh)
  layout = Layout(grid)
  rows = jax.sharding.NamedSharding(grid, layout.spec("b"))
  place = lambda x: jax.device_put(x, rows) if jnp.ndim(x) else x

  def both(outputs, batch, layout):
    return jax.value_and_grad(
        lambda o: LOSS(o, batch, None, layout) / LOSS.weight(batch))(outputs)

  want, want_grads = jax.jit(lambda o, b: both(o, b, Layout()))(
      outputs, batch)
  got, grads = jax.jit(lambda o, b: both(o, b, layout))(
      jax.tree.map(place, outputs), jax.tree.map(place, batch))
  np.testing.assert_allclose(got, want, rtol=1e-6)
  for name, leaf in want_grads.items():
    gap = jnp.linalg.norm(grads[name] - leaf) / jnp.linalg.norm(leaf)
    assert gap < 1e-5, name


def test_couples_samples() -> None:
  """Said by the class, so that accumulation is refused with the config."""
  assert OBJECTIVES.get("contrastive").coupled
