"""Words that carry ALIGN's distribution: found, written, kept."""

import dataclasses
import json

import numpy as np
import pytest

import align_jax
from align_jax import api
from align_jax.cli.main import main
from align_jax.connectors import CONNECTORS
from align_jax.errors import InputError
from align_jax.inspect import pruning
from tests.evals import tiny_run

pytest.importorskip("easy_vqa")


@pytest.fixture(scope="module")
def align():
  return align_jax.load_run(tiny_run.shared("align"))


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return list(rng.integers(0, 256, (3, 16, 16, 3)).astype(np.uint8))


def test_the_heaviest_words_and_their_mass_computed_slowly(align, images):
  found = pruning.find(align, images, 10)
  probs = np.concatenate([align.distribution([i])[0] for i in images])
  mean = {v: np.mean([p[v] for p in probs]) for v in range(80)}
  heavy = sorted(mean, key=lambda v: -mean[v])[:10]
  assert set(found.words) == set(heavy)
  np.testing.assert_allclose(found.mass, sum(mean[v] for v in heavy),
                             rtol=1e-5)
  np.testing.assert_allclose(
      found.least_mass, min(sum(p[v] for v in heavy) for p in probs),
      rtol=1e-5)
  assert found.vocabulary == 80 and found.tokens == 12
  assert found.needed["0.5"] < found.needed["0.9"] <= 80


def test_spread_over_the_vocabulary_computed_slowly(align, images):
  found = pruning.find(align, images, 10)
  probs = np.concatenate([align.distribution([i])[0] for i in images])
  nats = lambda p: -sum(x * np.log(x) for x in p.astype("d") if x > 0)
  np.testing.assert_allclose(found.entropy, np.mean([nats(p) for p in probs]),
                             rtol=1e-5)
  np.testing.assert_allclose(found.entropy_of_mean, nats(probs.mean(0)),
                             rtol=1e-5)
  assert found.covered == len({int(p.argmax()) for p in probs})


def test_words_to_compare_with(align, images):
  heavy, chance, often = (pruning.find(align, images, 6, choice)
                          for choice in pruning.CHOICES)
  assert heavy.mass > max(chance.mass, often.mass)
  assert chance.words == pruning.find(align, images, 6, "random").words
  assert chance.words != pruning.find(align, images, 6, "random", 1).words
  # Of easy-VQA's questions; "?" ends each of them.
  text = align.tokenizer.convert_ids_to_tokens(often.words)
  assert "?" in text and " the" in text
  counts = pruning.text_counts(align, 80)
  assert min(counts[list(often.words)]) >= np.sort(counts)[-6]
  for found in (heavy, chance, often):
    assert len(set(found.words)) == 6
    probs = np.concatenate([align.distribution([i])[0] for i in images])
    np.testing.assert_allclose(
        found.mass, probs.mean(0)[list(found.words)].sum(), rtol=1e-5)
  with pytest.raises(InputError, match="did you mean 'random'"):
    pruning.find(align, images, 6, "randon")


def test_a_run_that_keeps_words_renormalises_over_them(align, images):
  kept = pruning.find(align, images, 10).words
  pruned = align.keeping(kept)
  whole, few = (r.distribution(images[:1])[0] for r in (align, pruned))
  assert (np.delete(few, kept, axis=-1) == 0).all()
  np.testing.assert_allclose(
      few[:, kept], whole[:, kept] / whole[:, kept].sum(-1, keepdims=True),
      rtol=1e-4)
  np.testing.assert_allclose(pruned.visual_tokens(images[:1])[0],
                             few @ align.embeddings, rtol=1e-4, atol=1e-5)


def test_words_go_through_a_file_into_an_evaluation(
    align, capsys, monkeypatch):
  monkeypatch.setattr(api, "load_run", lambda workdir, **options: align)
  run = str(align.workdir)
  assert main(["inspect", "words", run, "--keep", "12", "--images", "2",
               "--json"]) == 0
  said = json.loads(capsys.readouterr().out)
  assert len(said["words"]) == 12 and 0 < said["mass"] < 1
  assert pruning.read_words(said["file"]) == tuple(said["words"])
  assert said["file"].endswith("/inspect/kept_12.json")
  assert main(["evaluate", run, "--limit", "4", "--no-probe", "--no-blind",
               "--keep-words", said["file"], "--json"]) == 0
  scored = json.loads(capsys.readouterr().out)
  assert scored["kept"] == 12
  assert (align.workdir / "eval" / "easy_vqa.kept_12.json").is_file()


def test_what_cannot_be_kept_is_refused(
    align, images, tmp_path, monkeypatch):
  with pytest.raises(InputError, match="81 words to keep of 80"):
    pruning.find(align, images[:1], 81)
  with pytest.raises(InputError, match="holds no words to keep"):
    pruning.read_words(tmp_path / "none.json")
  model = align.model.clone(connector=CONNECTORS.get("mlp")(dim_out=16))
  free = dataclasses.replace(
      align, parts=dataclasses.replace(align.parts, model=model))
  with pytest.raises(InputError, match="mixes no words of which some"):
    free.keeping((1, 2))
  monkeypatch.setattr(api.Run, "distribution", lambda run, images: None)
  with pytest.raises(InputError, match="has no distribution over words"):
    pruning.find(free, images[:1], 3)
