"""Features that are kept: what a tower gives, found again by its images."""

import functools

import numpy as np
import pytest

pytest.importorskip("fontawesomefree")

import jax  # noqa: E402

from align_jax.config import PartConfig  # noqa: E402
from align_jax.data import features  # noqa: E402
from align_jax.data.icon_scenes import IconScenes  # noqa: E402
from align_jax.data.images import BadImage  # noqa: E402
from align_jax.errors import ConfigError, InputError  # noqa: E402
from align_jax.hub.pretrained import read_spec  # noqa: E402
from align_jax.hub.tower_face import load_tower  # noqa: E402
from align_jax.validate import validate  # noqa: E402
from tests.tiny import random_batch, tiny_vlm  # noqa: E402

TOWER = "pkg:align_jax/weights/mini_clip"


@pytest.fixture(scope="module")
def source() -> IconScenes:
  return IconScenes("train", "questions", scenes=3, questions=2)


@pytest.fixture(scope="module")
def kept(source, tmp_path_factory):
  folder = tmp_path_factory.mktemp("features") / "kept"
  made = features.write(TOWER, [source], folder, batch=2)
  return folder, made


@pytest.fixture(scope="module")
def spec():
  return read_spec(TOWER, "tower")


def test_what_is_read_is_what_the_tower_gives(kept, source, spec):
  folder, made = kept
  assert made["shape"] == [3, 16, 128]  # each scene once
  reader = features.FeatureReader(folder, PartConfig(weights=TOWER), spec)
  assert reader.shape == (16, 128)
  tower = load_tower(TOWER)
  for scene in (2, 0):
    found = reader(source[2 * scene]["images"][0])
    np.testing.assert_allclose(
        found, np.asarray(tower([source.image(scene)]))[0], atol=1e-5)


def test_other_towers_and_images_are_refused(kept, source, spec):
  folder, _ = kept
  with pytest.raises(InputError, match="layer: there -1, in this run -2"):
    features.FeatureReader(folder, PartConfig(weights=TOWER, layer=-2), spec)
  with pytest.raises(InputError, match="no features in"):
    features.FeatureReader(folder / "x", PartConfig(weights=TOWER), spec)
  with pytest.raises(InputError, match="new in each run"):
    features.FeatureReader(folder, PartConfig(kind="clip"), None)
  reader = features.FeatureReader(folder, PartConfig(weights=TOWER), spec)
  with pytest.raises(BadImage, match="made of other images"):
    reader(IconScenes("test").picture(0))
  with pytest.raises(InputError, match="holds features already"):
    features.write(TOWER, [source], folder)


def test_a_model_takes_features_for_pixels():
  model, batch = tiny_vlm("linear"), random_batch(rows=2)
  params = model.init(jax.random.key(0), batch)
  read = jax.jit(functools.partial(model.apply, method="features"))
  run = jax.jit(lambda p, b: model.apply(p, b)["hidden"])
  kept_features = read(params, batch)
  np.testing.assert_array_equal(
      run(params, batch), run(params, batch | {"images": kept_features}))


def test_features_of_a_tower_that_is_trained_are_refused():
  config = dict(
      name="x", model=dict(tower=dict(weights=TOWER),
                           decoder=dict(kind="llama", config=dict(
                               vocab_size=8, width=8, layers=1, heads=1,
                               mlp_width=8))),
      data=dict(sources=dict(a=dict(kind="icon_scenes")), features="f"),
      stages=[dict(name="s", steps=1, train={"tower/*": 1e-3})])
  with pytest.raises(ConfigError, match="whose features are others"):
    validate(config)
