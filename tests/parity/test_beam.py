"""Beam search against transformers' own, token for token."""

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

from align_jax.decoders.transformer import init_cache  # noqa: E402
from align_jax.evals.beam import search  # noqa: E402
from align_jax.evals.decoding import SAM_BEAM, Beam  # noqa: E402
from align_jax.hub.faces import load_decoder  # noqa: E402
from tests.parity.test_llama import reference  # noqa: E402

NEW = 8
PROMPTS = np.random.default_rng(3).integers(20, 61, (6, 5))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
  """transformers' model and ours, from the same weights."""
  theirs = reference("gqa_tied")
  folder: Path = tmp_path_factory.mktemp("llama")
  theirs.save_pretrained(folder)
  return theirs, load_decoder(str(folder))


def their_answer(theirs: Any, prompt: np.ndarray, beam: Beam,
                 stop: tuple[int, ...]) -> list[int]:
  """One prompt, given as embeddings: then the penalty sees no prompt."""
  embeds = theirs.get_input_embeddings()(torch.tensor(prompt[None]))
  config = transformers.GenerationConfig(
      num_beams=beam.size, do_sample=False, max_new_tokens=NEW,
      repetition_penalty=beam.repetition_penalty,
      length_penalty=beam.length_penalty,
      min_new_tokens=beam.min_length or None, eos_token_id=list(stop) or None,
      pad_token_id=0, early_stopping=False)
  with torch.no_grad():
    out = theirs.generate(inputs_embeds=embeds, generation_config=config,
                          attention_mask=torch.ones(embeds.shape[:2],
                                                    dtype=torch.long))
  return out[0].tolist()


@pytest.fixture(scope="module")
def stops(models: tuple[Any, Any]) -> tuple[int, ...]:
  """Two tokens that greedy answers hold late, so that some answers end."""
  said = [their_answer(models[0], p, Beam(1), ()) for p in PROMPTS]
  late = Counter(t for answer in said for t in answer[2:])
  return tuple(t for t, _ in late.most_common(2))


@functools.partial(jax.jit, static_argnums=(0, 1))
def our_answers(module: Any, beam: Beam, params: Any, prompts: jax.Array,
                stop: jax.Array, live: jax.Array) -> jax.Array:
  b, length = prompts.shape
  apply = lambda method, *args, **kw: module.apply(
      {"params": params}, *args, method=method, **kw)
  cache = init_cache(module.config, b, length + NEW, jnp.float32)
  ones = jnp.ones_like(prompts)
  hidden, cache = module.apply(
      {"params": params}, apply("embed", prompts),
      jnp.arange(length)[None] * ones, ones, cache=cache)

  def advance(cache: Any, tokens: jax.Array, step: jax.Array) -> Any:
    at = jnp.full((len(tokens), 1), length + step)
    hidden, cache = module.apply(
        {"params": params}, apply("embed", tokens[:, None]), at,
        jnp.ones_like(at), cache=cache)
    return apply("logits", hidden[:, 0]), cache

  return search(beam, apply("logits", hidden[:, -1]), cache, advance, stop,
                live, NEW)


def cut(tokens: list[int], stop: tuple[int, ...]) -> list[int]:
  ends = [i for i, t in enumerate(tokens) if t in stop]
  return tokens[:ends[0] + 1] if ends else tokens


@pytest.mark.parametrize("beam, ends", [
    (SAM_BEAM, 2),
    (Beam(5, 1.5, 1.0, 6), 2),
    (Beam(4, 1.2, -1.0), 1),
    pytest.param(Beam(3, 1.0, 1.0), 2, marks=pytest.mark.slow),
    pytest.param(Beam(2, 1.0, 2.0), 2, marks=pytest.mark.slow),
])
def test_equal_token_for_token(models, stops, beam: Beam, ends: int):
  theirs, ours = models
  stop = stops[:ends]
  live = jnp.arange(len(PROMPTS) + 1) < len(PROMPTS)  # the last is padding
  padded = np.concatenate([PROMPTS, PROMPTS[:1] * 0])
  got = np.asarray(our_answers(
      ours.module, beam, ours.params, jnp.asarray(padded), jnp.asarray(stop),
      live))
  want = [their_answer(theirs, p, beam, stop) for p in PROMPTS]
  for mine, other in zip(got.tolist(), want):
    assert cut(mine, stop) == cut(other, stop)


def test_answers_end_and_differ_from_greedy_ones(models, stops):
  # Else the parity above would prove little.
  said = lambda beam: [cut(their_answer(models[0], p, beam, stops), stops)
                       for p in PROMPTS]
  answers = said(Beam(5, 1.5, 1.0))
  assert len({len(a) for a in answers}) > 1
  assert min(map(len, answers)) < 6 < min(map(len, said(
      Beam(5, 1.5, 1.0, 6))))
  assert answers != said(Beam(1)) and answers != said(Beam(5, 1.0, 1.0))
