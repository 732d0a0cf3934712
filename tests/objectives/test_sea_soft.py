"""SEA's soft labels: the sum that loops give, on one device and many."""

import functools
import math

import jax
import numpy as np
import pytest

from align_jax.config import MeshConfig
from align_jax.errors import InputError
from align_jax.objectives import sea, sea_soft
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from tests.objectives.test_sea import (
  B,
  Letters,
  N,
  P,
  config,
  keys,
  n,
  step_of,
  write_labels,
)


@pytest.fixture
def make(tmp_path, monkeypatch):
  """(kind, **options) -> an objective over the same labels."""
  monkeypatch.setattr("align_jax.build.Parts.tokenizer", Letters())
  folder = str(write_labels(tmp_path))
  return lambda kind, given=None, **options: kind(
      given or config(), labels=folder, n=n, **options)


def loss_of(made, outputs, batch, rows=slice(None)):
  """Compiled once: op by op it would be compiled a hundred times."""
  return float(jax.jit(lambda o, b, k: made(o, b, k, Layout()))(
      outputs, batch, keys()[rows]))


def unit(x):
  return x / np.linalg.norm(x)


def slowly(pairs, batch, outputs, table):
  """Eq 8-11 with soft targets, a pair at a time, in f64."""
  embed = outputs["embed_vd"].astype("d")
  word = lambda q: unit(np.mean([embed[t] for t in table[q] if t >= 0], 0))
  found = []
  for b, r in np.argwhere(np.asarray(pairs.keep)):
    image, patch = divmod(int(pairs.patch[b, r]), P)
    ids = batch["extras"]["sea_words"][b, image, 0, patch]
    scores = batch["extras"]["sea_scores"][b, image, 0, patch]
    listed = {int(w): float(s) for w, s in zip(ids, scores) if w >= 0}
    whole = sum(listed.values())
    token = outputs["visual_tokens"].reshape(B, N * P, -1)[
        b, int(pairs.token[b, r])]
    found.append((unit(token.astype("d")), int(pairs.word[b, r]),
                  {w: s / whole for w, s in listed.items()}))
  scale = math.exp(0.5)
  total = 0.0
  for x, _, listed in found:
    s = [scale * float(x @ word(w)) for _, w, _ in found]
    here = [listed.get(w, 0.0) for _, w, _ in found]
    total += 0.5 * (math.log(sum(map(math.exp, s)))
                    - sum(h * v for h, v in zip(here, s)) / sum(here))
  for _, w, _ in found:
    s = [scale * float(x @ word(w)) for x, _, _ in found]
    here = [listed.get(w, 0.0) for _, _, listed in found]
    total += 0.5 * (math.log(sum(map(math.exp, s)))
                    - sum(h * v for h, v in zip(here, s)) / sum(here))
  return total, found


def test_the_sum_is_that_of_loops(make):
  made = make(sea_soft.SeaSoft)
  batch, outputs = step_of()
  pairs = jax.jit(lambda b, k: made.pairs(b, k, Layout()))(batch, keys())
  want, found = slowly(pairs, batch, outputs, made.table_qm)
  got = loss_of(made, outputs, batch)
  assert got == pytest.approx(want, rel=1e-5)
  # Some patch does list the word of another, so this is not SEA's sum.
  hard = loss_of(make(sea.Sea), outputs, batch)
  assert abs(hard - want) > 1e-2 * want
  assert int(pairs.keep.sum()) == len(found) > 3


def test_a_patch_of_one_word_each_is_seas(make):
  batch, outputs = step_of()
  batch["extras"]["sea_scores"][..., 1:] = 0
  batch["extras"]["sea_words"][..., 1:] = -1
  soft, hard = (loss_of(make(kind), outputs, batch)
                for kind in (sea_soft.SeaSoft, sea.Sea))
  assert soft == pytest.approx(hard, rel=1e-5)


@pytest.mark.parametrize("scope", ["global", "per_device"])
def test_eight_devices_give_the_sum_and_gradients_of_one(make, scope):
  made = make(sea_soft.SeaSoft, scope=scope)
  batch, outputs = step_of()
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))

  def of(layout, made=made):
    loss = lambda x, s: made(outputs | {
        "visual_tokens": x, "scalars": {"sea_log_scale": s}}, batch, keys(),
                             layout)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(
        outputs["visual_tokens"], np.float32(0.5))

  loss, grads = of(Layout(mesh))
  if scope == "global":
    want, same = of(Layout())
    for got, grad in zip(grads, same):
      assert np.linalg.norm(got - grad) < 1e-5 * np.linalg.norm(grad)
  else:
    alone = make(sea_soft.SeaSoft)
    cut = lambda x, b: x[b:b + 1]
    run = jax.jit(lambda o, batch, k: alone(o, batch, k, Layout()))
    want = sum(float(run(
        outputs | {"visual_tokens": cut(outputs["visual_tokens"], b)},
        jax.tree.map(functools.partial(cut, b=b), batch),
        keys()[b:b + 1])) for b in range(B))
  assert float(loss) == pytest.approx(float(want), rel=1e-5)


def test_patches_without_a_label_add_nothing(make):
  batch, outputs = step_of()
  batch["extras"]["sea_words"][:, :, :] = -1
  batch["extras"]["sea_scores"][:, :, :] = 0
  made = make(sea_soft.SeaSoft)
  loss = lambda x, b: made(outputs | {"visual_tokens": x}, b, keys(), Layout())
  grad, count = jax.jit(lambda x, b: (
      jax.grad(loss)(x, b), made.weight(b, keys())))(
          outputs["visual_tokens"], batch)
  assert count == 0
  assert not np.asarray(grad).any()


def test_its_own_options_are_named_in_a_refusal(make):
  with pytest.raises(InputError, match="objective_options.sea_soft.scope"):
    make(sea_soft.SeaSoft, scope="batch")
