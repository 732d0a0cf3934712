"""Controls of labels, and the check of their sign."""

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("fontawesomefree")

from align_jax.cli.main import main  # noqa: E402
from align_jax.data.icon_scenes import IconScenes, concepts  # noqa: E402
from align_jax.data.labelled import Labelled  # noqa: E402
from align_jax.errors import InputError  # noqa: E402
from align_jax.hub.tower_face import load_tower  # noqa: E402
from align_jax.labels import job, known, store  # noqa: E402

TOWER = "pkg:align_jax/weights/mini_clip"
SOURCE = {"kind": "icon_scenes",
          "options": {"split": "train", "form": "captions", "scenes": 6}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("labels")
  (folder / "words.txt").write_text("\n".join(["blue", "red", *concepts()]))
  plan = job.Plan(TOWER, str(folder / "words.txt"), SOURCE, how="maskclip",
                  sign=1.0, n=3)
  tower = load_tower(TOWER)
  job.label(plan, IconScenes(**SOURCE["options"]), tower, folder / "found",
            batch=3)
  return folder, plan, tower


def test_shuffled_labels_are_another_images(made):
  folder = made[0]
  known.derive("shuffled", folder / "found", folder / "shuffled")
  first, other = (store.Labels(folder / n) for n in ("found", "shuffled"))
  whose = {first[key][1].tobytes(): key for key in first.keys()}
  partners = [whose[other[key][1].tobytes()] for key in first.keys()]
  assert sorted(partners) == sorted(first.keys())
  assert not any(a == b for a, b in zip(first.keys(), partners))
  assert other.manifest["how"] == "shuffled"
  assert other.manifest["crop"] == first.manifest["crop"]


def test_true_labels_are_what_is_there(made):
  folder = made[0]
  manifest = known.derive("true", folder / "found", folder / "true")
  words = ["blue", "red", *concepts()]
  source = IconScenes(**SOURCE["options"])
  labels = store.Labels(folder / "true")
  empty = 0
  for scene in range(6):
    key, _ = job.image_key(source.image(scene))
    ids, scores = labels[key]
    for patch, true in enumerate(source.truth(scene, 4)):
      assert {words[i] for i in ids[patch] if i >= 0} == true
      np.testing.assert_array_equal(scores[patch] > 0, ids[patch] >= 0)
      empty += not true
  assert manifest["unlabelled_share"] == empty / (6 * 16)


def _undrawable(scene: int) -> bytes:
  raise AssertionError(f"scene {scene} was drawn")


def test_labels_are_found_without_drawing(made, tmp_path):
  folder = made[0]
  source = Labelled(SOURCE, str(folder / "found"))
  image = source.of.picture(4)
  digest, _ = job.image_key(image)
  (tmp_path / "digests.json").write_text(json.dumps(
      {image.name: digest.hex()}))
  known_by_name = Labelled(SOURCE, str(folder / "found"),
                           digests=str(tmp_path / "digests.json"))
  wanted = source[4]["extras"]["sea_words"]
  known_by_name.of.image = _undrawable
  np.testing.assert_array_equal(
      known_by_name[4]["extras"]["sea_words"], wanted)


def test_the_sign_is_that_which_ranks_things_first(made, tmp_path):
  _, plan, tower = made

  class Turned:
    """The same tower with all its patches turned round."""
    config, text, process = tower.config, tower.text, tower.process

    def patch_embeds(self, *args, **options):
      return -tower.patch_embeds(*args, **options)

  source = IconScenes(**SOURCE["options"])
  sign, found = known.check_sign(plan, tower, source)
  turned, other = known.check_sign(
      dataclasses.replace(plan, sign=-1.0), Turned(), source)
  assert turned == -sign
  assert other["things"] == pytest.approx(-found["things"])
  with pytest.raises(InputError, match="does not know what its patches show"):
    known.check_sign(plan, tower, object())
  (tmp_path / "words.txt").write_text("quark\nlepton\n")
  with pytest.raises(InputError, match="of 2 words .* none is shown"):
    known.check_sign(dataclasses.replace(
        plan, words=str(tmp_path / "words.txt")), tower, source)


def test_verb(made, tmp_path, capsys):
  folder, plan, _ = made
  out = tmp_path / "out"
  assert main(["label", "--of", str(folder / "found"), "--out",
               str(out)]) == 2
  assert main(["label", "--out", str(out)]) == 2
  assert "--tower, --words, --source" in capsys.readouterr().err
  assert main(["label", "--of", str(folder / "found"), "--as", "shuffled",
               "--out", str(out)]) == 0
  assert "6 images of 16 patches" in capsys.readouterr().out
  assert main(["label", "--of", str(folder / "found"), "--as", "true",
               "--out", str(out)]) == 2
  assert "holds labels already" in capsys.readouterr().err
