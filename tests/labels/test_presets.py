"""SEA's presets, and labels for a tower that crops otherwise."""

import io

import numpy as np
import pytest
from PIL import Image

from align_jax.config import load_config
from align_jax.data.images import ImageReader
from align_jax.errors import InputError
from align_jax.evals.study import load_study
from align_jax.hub.pretrained import load_processor
from align_jax.hub.tower_face import load_tower
from align_jax.inspect.labels import inspect_labels
from align_jax.labels import job
from align_jax.labels.presets import LABELS, TRAINING, label_preset

TOWER = "pkg:align_jax/weights/mini_clip"


def test_the_papers_settings_are_the_papers():
  """2408.11813: equations 8 and 9, sections 3.2 and 4.1."""
  assert label_preset("paper", "clip") == dict(how="raw", sign=-1.0, layer=-1)
  paper = TRAINING["paper"]
  assert (paper["n"], paper["window"], paper["log_scale"]) == (10, 2, 0.0)
  assert TRAINING.keys() == LABELS.keys()
  # With cosines alone N pairs cannot be told apart: what the recommended
  # start says of the paper's.
  least = np.log(1 + (36_864 - 1) * np.exp(-2.0))
  assert 8.4 < least < 8.6 and np.log(36_864) - least < 2.1
  assert TRAINING["recommended"]["log_scale"] == pytest.approx(
      np.log(1 / 0.07), abs=1e-4)


def test_the_miniature_trains_by_the_presets():
  for arm, preset in (("paper", "paper"), ("minus", "paper"),
                      ("recommended", "recommended"),
                      ("shuffled", "recommended"), ("true", "recommended")):
    config, wanted = load_config(f"mini/sea:arm={arm}"), TRAINING[preset]
    own = config.objective_options["sea"]
    keys = ("n", "window", "scope", "lead")
    # Nine patches a scene, each of another thing, are no windows of 2 x 2.
    assert {k: own[k] for k in keys} == {k: wanted[k] for k in keys} | {
        "window": 1}
    assert dict(config.model.scalars) == {
        "sea_log_scale": wanted["log_scale"]}
    first = config.stages[0]
    assert first["objectives"]["sea"] == wanted["weight"]
  made = {p.name: p.commands[0] for p in load_study("mini/study_sea").prepare}
  for name, preset, sign in (("recommended", "recommended", "check"),
                             ("paper", "paper", "check"),
                             ("minus", "paper", "-1")):
    command = made[f"labels_{name}"]
    assert command[command.index("--preset") + 1] == preset
    assert command[command.index("--sign") + 1] == sign
    assert "--n" not in command and "--how" not in command


def test_presets_that_there_are_not():
  with pytest.raises(InputError, match="no preset 'papr'; did you mean"):
    label_preset("papr", "clip")
  with pytest.raises(InputError, match="'dinov2' has no text side"):
    label_preset("paper", "dinov2")


def test_labels_are_of_the_crop_of_the_tower_that_learns(
    tmp_path, monkeypatch):
  """A teacher of 64 pixels a side labels what a student will see."""
  other = load_processor(TOWER).__class__(
      size={"shortest_edge": 96}, crop_size={"height": 64, "width": 64})
  other.save_pretrained(tmp_path / "student")
  rng = np.random.default_rng(0)
  blocks = rng.integers(0, 255, (6, 8, 3)).astype(np.uint8)
  stream = io.BytesIO()
  Image.fromarray(blocks).resize((160, 120), Image.NEAREST).save(stream, "PNG")
  picture = stream.getvalue()

  class Source:
    def __len__(self):
      return 2

    def __getitem__(self, i):
      return {"images": [picture] * (i > 0), "origin": "here"}

  words = tmp_path / "words.txt"
  words.write_text("red\nblue\ncircle\n")
  tower = load_tower(TOWER)
  plan = job.Plan(tower=TOWER, words=str(words), source={"kind": "x"},
                  how="maskclip", sign=1.0, n=2,
                  crop_from=str(tmp_path / "student"))
  manifest = job.label(plan, Source(), tower, tmp_path / "labels", batch=1)
  student = load_processor(tmp_path / "student")
  assert manifest["crop"] == job.crop_of(student, 64)
  assert manifest["crop"] != job.crop_of(load_processor(TOWER), 64)
  seen, _ = ImageReader(student, 64)(picture)
  own = np.asarray(tower.process([seen]))
  np.testing.assert_array_equal(
      np.asarray(tower.cropping_as(tmp_path / "student").process([picture])),
      own)
  assert np.abs(own - np.asarray(tower.process([picture]))).max() > 0.1

  # What is drawn is that crop too; the first example has no picture.
  drawn = []
  monkeypatch.setattr("align_jax.data.SOURCES.get",
                      lambda kind: lambda **options: Source())
  monkeypatch.setattr("align_jax.inspect.labels.words_over_patches",
                      lambda pixels, *_: drawn.append(pixels) or b"")
  inspect_labels(tmp_path / "labels")
  assert len(drawn) == 1
  np.testing.assert_array_equal(drawn[0], seen)
