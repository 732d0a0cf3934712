"""Noise on features: how far tokens move, with and without their mean."""

import dataclasses
import json

import numpy as np
import pytest

import align_jax
from align_jax import api
from align_jax.cli.main import main
from align_jax.inspect import noise
from tests.evals import tiny_run

pytest.importorskip("easy_vqa")


@pytest.fixture(scope="module")
def mlp():
  return align_jax.load_run(tiny_run.shared("mlp"))


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return list(rng.integers(0, 256, (4, 16, 16, 3)).astype(np.uint8))


def test_tokens_of_features_are_those_of_their_images(mlp, images):
  features = mlp.features(images)
  np.testing.assert_allclose(mlp.tokens_of(features),
                             mlp.visual_tokens(images), rtol=1e-5, atol=1e-6)


def test_cosines_computed_slowly(mlp, images):
  found = noise.measure(mlp, images, (0.0, 0.5), seed=7)
  features = mlp.features(images)
  assert found["spread"] == pytest.approx(
      np.mean([f.std() for f in features]), rel=1e-5)
  drawn = np.random.default_rng(7).standard_normal(features.shape, "f")
  noisy = np.stack([f + 0.5 * f.std() * d for f, d in zip(features, drawn)])
  rows = lambda f: mlp.tokens_of(f).reshape(-1, 16).astype("d")
  a, b = rows(features), rows(noisy)
  cosine = lambda x, y: np.mean([p @ q / np.sqrt((p @ p) * (q @ q))
                                 for p, q in zip(x, y)])
  got = found["spread_units"]["0.5"]
  assert got["cosine"] == pytest.approx(cosine(a, b), rel=1e-4)
  assert got["distance"] == pytest.approx(1 - got["cosine"])
  assert got["centred"] == pytest.approx(
      cosine(a - a.mean(0), b - a.mean(0)), rel=1e-4)
  assert found["pairwise"] == pytest.approx(np.mean(
      [cosine(a[i:i + 1], a[j:j + 1]) for i in range(len(a))
       for j in range(len(a)) if i != j]), rel=1e-4)
  for unit in noise.UNITS:
    assert found[unit]["0"]["cosine"] == pytest.approx(1)


def test_a_nearly_constant_connector_is_robust_only_with_its_mean(
    mlp, images):
  """What the paper's measure would call robust."""
  params = mlp.params["connector"]
  constant = params | {"out_bias_d": params["out_bias_d"] + 30.0}
  alike = dataclasses.replace(mlp, params=mlp.params | {
      "connector": constant})
  before, after = (noise.measure(run, images, (1.0,))["spread_units"]["1"]
                   for run in (mlp, alike))
  assert after["distance"] < 1e-3 < before["distance"]
  assert after["centred"] == pytest.approx(before["centred"], abs=1e-2)


def test_verb(mlp, monkeypatch, capsys):
  monkeypatch.setattr(api, "load_run", lambda workdir, **options: mlp)
  run = str(mlp.workdir)
  assert main(["inspect", "noise", run, "--images", "3", "--sigmas", "1,3",
               "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["images"] == 3 and set(found["absolute"]) == {"1", "3"}
  assert json.loads(
      (mlp.workdir / "inspect" / "noise.json").read_text()) == found
  assert main(["inspect", "noise", run, "--sigmas", "1;3"]) == 2
  assert "--sigmas 1;3: numbers with commas" in capsys.readouterr().err
