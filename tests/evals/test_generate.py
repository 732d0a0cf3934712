"""Batching, padding, sharing and sharding change no answer."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from align_jax.config import MeshConfig
from align_jax.connectors.align import Align
from align_jax.errors import InputError
from align_jax.evals import generate
from align_jax.evals import prompts as cut
from align_jax.evals.decoding import Beam
from align_jax.evals.generate import Generator
from align_jax.ops.rope import LongRope
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from tests.evals import tiny

NEW = 5


@pytest.fixture(scope="module")
def world():
  """A model, prompts about six images and none, and their slow answers."""
  model, params = tiny.model_and_params()
  read = tiny.image_sets(6)
  rng = np.random.default_rng(0)
  prompts = [tiny.prompt(rng, key, tail=int(rng.integers(1, 9)))
             for key in (0, 1, 2, 0, 1, 0, 3, None, 2, 4, 5, None)]
  slow = [tiny.greedy_slowly(model, params, p, read, NEW) for p in prompts]
  return model, params, prompts, read, slow


def test_the_world_is_worth_testing(world):
  _, _, _, _, slow = world
  assert len({tuple(s) for s in slow}) > 6  # answers differ
  assert len({len(s) for s in slow}) > 1  # some stop early


@pytest.mark.parametrize("rows, share", [(1, False), (4, True), (32, True)])
def test_equals_one_by_one_without_cache(world, rows: int, share: bool):
  model, params, prompts, read, slow = world
  generator = Generator(model, params, [tiny.STOP], rows=rows, share=share)
  assert generator.generate(prompts, read, NEW) == slow


@pytest.mark.parametrize("rows, share", [
    pytest.param(2, False, marks=pytest.mark.slow), (32, True)])
def test_a_beam_of_one_is_greedy_however_it_is_batched(world, rows, share):
  model, params, prompts, read, slow = world
  generator = Generator(model, params, [tiny.STOP], rows=rows, share=share)
  # Divided by its length to the power of 0, no answer gains by being short.
  assert generator.generate(prompts, read, NEW,
                            beam=Beam(1, 1.0, 0.0)) == slow


def test_a_beam_finds_a_likelier_answer(world):
  model, params, prompts, read, slow = world
  prompts, slow = prompts[:4], slow[:4]
  generator = Generator(model, params, [tiny.STOP], rows=4)
  found = generator.generate(prompts, read, 3, beam=Beam(60, 1.0, 0.0))
  end = lambda ids: (list(ids) + [tiny.STOP])[:3]
  score = lambda n, ids: generator.score([prompts[n]], [end(ids)], read)[0, 0]
  for n in range(4):
    assert score(n, found[n]) >= score(n, slow[n][:3]) - 1e-4


def test_several_images_a_prompt():
  model, params = tiny.model_and_params()
  read = tiny.image_sets(2, per_set=3)
  rng = np.random.default_rng(4)
  prompts = [tiny.prompt(rng, key, images=3) for key in (0, 1, 0, 1, 1)]
  slow = [tiny.greedy_slowly(model, params, p, read, NEW) for p in prompts]
  got = Generator(model, params, [tiny.STOP]).generate(prompts, read, NEW)
  assert got == slow


def test_images_are_read_once_a_set(world):
  model, params, prompts, read, _ = world
  seen = []

  def counted(key):
    seen.append(key)
    return read(key)

  Generator(model, params, [tiny.STOP]).generate(prompts, counted, 1)
  assert sorted(seen) == [0, 1, 2, 3, 4, 5]


def test_scores_are_log_probabilities_computed_slowly(world):
  model, params, prompts, read, _ = world
  answers = [[9, tiny.STOP], [12, 13, tiny.STOP], [20]]
  got = Generator(model, params, [tiny.STOP], rows=4).score(
      prompts, answers, read)
  for i, prompt in enumerate(prompts):
    for j, answer in enumerate(answers):
      logits = tiny.logits_slowly(model, params, prompt, read, answer)
      log_probs = np.asarray(jax.nn.log_softmax(logits))
      start = len(prompt.tokens) - 1
      want = sum(log_probs[start + k, a] for k, a in enumerate(answer))
      np.testing.assert_allclose(got[i, j], want, rtol=1e-4, atol=1e-4)


def test_each_prompt_may_have_answers_of_its_own(world):
  model, params, prompts, read, _ = world
  generator = Generator(model, params, [tiny.STOP], rows=4)
  answers = [[9, tiny.STOP], [12, 13, tiny.STOP], [20]]
  common = generator.score(prompts, answers, read)
  turned = [answers[i % 3:] + answers[:i % 3] for i in range(len(prompts))]
  own = generator.score(prompts, turned, read)
  for i, row in enumerate(own):
    np.testing.assert_allclose(row, np.roll(common[i], -(i % 3)), rtol=1e-5,
                               atol=1e-5)


def test_likelihood_prefers_the_greedy_token(world):
  model, params, prompts, read, _ = world
  got = Generator(model, params, [tiny.STOP]).score(
      prompts, [[v] for v in range(tiny.V)], read)
  for prompt, scores in zip(prompts, got):
    logits = tiny.logits_slowly(model, params, prompt, read)
    assert scores.argmax() == logits[-1].argmax()
  np.testing.assert_allclose(np.exp(got).sum(-1), 1, rtol=1e-5)


def test_noise_is_keyed_by_the_images(world):
  model, params, prompts, read, slow = world
  make = lambda **kw: Generator(model, params, [tiny.STOP], **kw)
  scores = [make(noise=1.0, **kw).score(prompts, [[9], [11]], read)
            for kw in (dict(rows=4), dict(rows=32, share=False),
                       dict(rows=32, seed=1))]
  np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4)
  seeing = [i for i, p in enumerate(prompts) if p.images is not None]
  assert (np.abs(scores[0] - scores[2])[seeing].max(-1) > 1e-3).all()
  clean = make().score(prompts, [[9], [11]], read)
  blind = [i for i, p in enumerate(prompts) if p.images is None]
  np.testing.assert_allclose(scores[0][blind], clean[blind], rtol=1e-4,
                             atol=1e-4)
  assert (np.abs(scores[0] - clean)[seeing].max(-1) > 1e-3).all()


def test_noise_is_in_units_of_the_features_or_of_their_spread():
  model, params = tiny.model_and_params()
  pixels = np.random.default_rng(3).integers(
      0, 256, (2, 1, tiny.SIZE, tiny.SIZE, 3), np.uint8)
  batch = {"images": pixels, "image_boxes": np.array(
      [[[0, 0, tiny.SIZE, tiny.SIZE]]] * 2, np.int32),
           "image_segment_ids": np.ones((2, 1), np.int32), "extras": {}}
  spread = np.asarray(model.apply(
      {"params": params}, batch, method="features")).std(axis=(1, 2, 3))
  tokens = lambda sigma, absolute: np.asarray(generate._encode(
      model, True, params, batch, np.arange(2), sigma, absolute, 0).tokens)
  relative = tokens(0.5, False)
  for i in range(2):
    np.testing.assert_allclose(tokens(0.5 * spread[i], True)[i], relative[i],
                               rtol=1e-5, atol=1e-5)
  assert np.abs(tokens(0.5, True) - relative).max() > 1e-2


def test_on_a_mesh(world):
  _, params, prompts, read, slow = world
  mesh = make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4])
  model, _ = tiny.model_and_params(Layout(mesh))
  params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
  generator = Generator(model, params, [tiny.STOP], rows=4)
  assert generator.generate(prompts, read, NEW) == slow


def test_a_mix_of_words_is_not_kept():
  model, _ = tiny.model_and_params()
  model = model.clone(connector=Align(dim_out=tiny.D, vocab_size=tiny.V))
  batch = {"images": np.zeros((2, 1, tiny.SIZE, tiny.SIZE, 3), np.uint8),
           "image_boxes": np.zeros((2, 1, 4), np.int32),
           "image_segment_ids": np.ones((2, 1), np.int32), "extras": {}}
  text = np.zeros((2, 8), np.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), batch | {
      "tokens": text, "visual_index": text - 1, "positions": text,
      "segment_ids": text + 1})["params"]
  visual = jax.eval_shape(
      lambda params: generate._encode(model, False, params, batch,
                                      np.zeros(2, np.int32), 0.0, False, 0),
      params)
  assert visual.tokens.shape == (2, 1, tiny.T, tiny.D)
  assert visual.aux == {}  # without f32[B,N,P,V]


def test_nothing_to_answer(world):
  model, params, _, read, _ = world
  assert Generator(model, params, [tiny.STOP]).generate([], read) == []
  with pytest.raises(ValueError, match="at least one stop token"):
    Generator(model, params, [])


def _longrope(world, limit: int):
  """The same world; all keys change beyond so many positions."""
  model, params, prompts, read, _ = world
  config = model.decoder.config
  half = config.head_width // 2
  long = dataclasses.replace(config, rope_scaling=LongRope(
      (1.0,) * half, (3.0,) * half, limit, 1.1))
  return model.clone(decoder=long.make()), params, prompts, read


def test_longrope_answers_that_cross_its_limit_are_read_anew(world):
  lengths = sorted(len(p.tokens) for p in world[2])
  limit = lengths[len(lengths) // 2] + 1
  model, params, prompts, read = _longrope(world, limit)
  prompts = sorted(prompts, key=lambda p: len(p.tokens))[::4]
  want = [tiny.greedy_slowly(model, params, p, read, NEW) for p in prompts]
  ends = [len(p.tokens) + len(w) for p, w in zip(prompts, want)]
  assert lengths[-1] > limit  # some begin beyond, and some cross
  assert any(len(p.tokens) <= limit < end for p, end in zip(prompts, ends))
  assert Generator(model, params, [tiny.STOP]).generate(
      prompts, read, NEW) == want


def test_choices_that_cross_longropes_limit_are_refused(world):
  longest = max(len(p.tokens) for p in world[2])
  model, params, prompts, read = _longrope(world, longest)
  generator = Generator(model, params, [tiny.STOP])
  with pytest.raises(InputError, match=f"a prompt of {longest} tokens and 2 "
                                       f"more pass the {longest} positions"):
    generator.score(prompts, [[1, 2], [3]], read)
  with pytest.raises(InputError, match="read anew for each beam"):
    generator.generate(prompts, read, NEW, beam=Beam(2))


def _prompt(tokens, visual=None, key=0):
  tokens = np.array(tokens, np.int32)
  return cut.Prompt(tokens, np.full_like(tokens, -1) if visual is None
                    else np.array(visual, np.int32), key)


@pytest.mark.parametrize("rows, shared", [
    ([[1, 2, 3]], 0),  # nobody to share with
    ([[1, 2, 3], [1, 2, 4]], 2),
    ([[1, 2, 3], [1, 2, 3]], 2),  # one token must be left to read
    ([[1, 2, 3], [1, 2]], 1),
    ([[5, 2], [1, 2]], 0),
])
def test_shared_prefix(rows, shared: int):
  assert cut.shared_prefix([_prompt(r) for r in rows]) == shared


def test_a_prefix_ends_where_the_visual_tokens_differ():
  assert cut.shared_prefix([_prompt([0, 0, 0], [0, 1, -1]),
                            _prompt([0, 0, 0], [0, 2, -1])]) == 1


def test_few_lengths():
  assert {cut.bucket(n) for n in range(1, 129)} == {
      8, 12, 16, 24, 32, 48, 64, 96, 128}
  assert all(cut.bucket(n) >= n for n in range(300))
  assert [cut.rows_for(n, 32) for n in (1, 2, 3, 33)] == [1, 2, 4, 32]
