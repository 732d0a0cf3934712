"""The labelling job on the shipped CLIP and the real images it was not
trained on: what it finds, what it refuses, and how it goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("easy_vqa")

from align_jax.cli.main import main  # noqa: E402
from align_jax.config import MeshConfig  # noqa: E402
from align_jax.data.easy_vqa.facts import COLORS, SHAPES  # noqa: E402
from align_jax.data.easy_vqa.source import EasyVQA  # noqa: E402
from align_jax.data.example import BadSample  # noqa: E402
from align_jax.data.icon_scenes import IconScenes  # noqa: E402
from align_jax.data.labelled import Labelled  # noqa: E402
from align_jax.errors import InputError  # noqa: E402
from align_jax.hub.tower_face import load_tower  # noqa: E402
from align_jax.labels import job, presets, store  # noqa: E402
from align_jax.parallel.mesh import make_mesh  # noqa: E402

TOWER = "pkg:align_jax/weights/mini_clip"
WORDS = [*sorted(COLORS), *sorted(SHAPES)]


class Few:
  """The first examples of a source."""

  def __init__(self, source, count):
    self.source, self.count = source, count

  def __len__(self):
    return self.count

  def __getitem__(self, i):
    return self.source[i]


@pytest.fixture(scope="module")
def tower():
  return load_tower(TOWER)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  data_dir = tmp_path_factory.mktemp("datasets")
  return Few(EasyVQA("test", "captions", str(data_dir)), 23)


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> str:
  file = tmp_path_factory.mktemp("words") / "words.txt"
  file.write_text("\n".join(WORDS))
  return str(file)


def plan(words: str, **options) -> job.Plan:
  given = dict(tower=TOWER, words=words, source={"kind": "easy_vqa"},
               how="maskclip", sign=1.0, n=3, shard=8, templates=("a {}",))
  return job.Plan(**(given | options))


@pytest.fixture(scope="module")
def made(tower, source, words, tmp_path_factory):
  folder = tmp_path_factory.mktemp("labels") / "found"
  counts = []
  manifest = job.label(plan(words), source, tower, folder, batch=5,
                       progress=lambda *told: counts.append(told))
  assert sum(images for images, _ in counts) == 23
  left = [left for _, left in counts]
  assert left[0] == 23 and left[-1] == 0 and left == sorted(left)[::-1]
  return folder, manifest


def test_labels_are_the_best_words_of_each_patch(made, tower, source):
  folder, manifest = made
  assert manifest["images"] == 23 and manifest["shards"] == 3
  labels = store.Labels(folder)
  assert len(labels) == 23
  text = np.asarray(tower.text(WORDS, ("a {}",)))
  for i in (0, 7, 8, 22):
    key, data = job.image_key(source[i]["images"][0])
    ids, scores = labels[key]
    patches = np.asarray(tower.patch_embeds(tower.process([data]),
                                            "maskclip"))[0]
    cosine = patches @ text.T
    order = np.argsort(-cosine, -1)[:, :3]
    best = np.take_along_axis(cosine, order, -1)
    np.testing.assert_array_equal(ids, np.where(best > 0, order, -1))
    np.testing.assert_allclose(scores, np.maximum(best, 0), atol=2e-3)


def test_a_job_that_was_stopped_leaves_the_same_files(
    made, tower, source, words, tmp_path, monkeypatch):
  folder, _ = made

  class Stop(Exception):
    pass

  def stop(images, _):
    nonlocal left
    left -= images
    if left <= 0:
      raise Stop

  left = 12  # in the second of three shards
  with pytest.raises(Stop):
    job.label(plan(words), source, tower, tmp_path, batch=5, progress=stop)
  with pytest.raises(InputError, match="not finished"):
    store.Labels(tmp_path)
  done = []
  assert (tmp_path / "text_features.npy").is_file()
  monkeypatch.setattr(type(tower), "text", None)  # not computed once more
  job.label(plan(words), source, tower, tmp_path, batch=5,
            progress=lambda images, left: done.append(images))
  assert not (tmp_path / "text_features.npy").exists()
  assert sum(done) == 15  # the first shard of 8 was not done again
  names = {p.name for p in tmp_path.iterdir()}
  assert {p.name for p in folder.iterdir()} <= names
  for name in (p.name for p in folder.glob("labels-*")):
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
  index = lambda at: np.load(at / "index.npz")
  np.testing.assert_array_equal(index(tmp_path)["keys"],
                                index(folder)["keys"])


def test_two_processes_share_the_shards(made, tower, source, words, tmp_path):
  folder, _ = made
  for process in (1, 0):
    manifest = job.label(plan(words), source, tower, tmp_path, batch=5,
                         process=process, processes=2)
    assert ("images" in manifest) == (process == 0)
  for path in folder.glob("labels-*"):
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_eight_devices_label_as_one(made, source, words, tmp_path):
  mesh = make_mesh(MeshConfig(data=-1))
  assert mesh.size == 8
  many = load_tower(TOWER, mesh=mesh)
  job.label(plan(words), source, many, tmp_path, batch=5, mesh=mesh)
  first, other = store.Labels(made[0]), store.Labels(tmp_path)
  assert first.keys() == other.keys()
  for key in first.keys():
    np.testing.assert_array_equal(first[key][0], other[key][0])
    np.testing.assert_allclose(first[key][1], other[key][1], atol=1e-3)


def test_other_settings_are_refused_in_the_same_folder(
    made, tower, source, words):
  folder, _ = made
  with pytest.raises(InputError) as error:
    job.label(plan(words, n=2, threshold=0.1), source, tower, folder)
  assert "n: there 3, now 2" in str(error.value)
  assert "threshold: there 0.0, now 0.1" in str(error.value)


def test_the_threshold_leaves_patches_without_a_label(
    tower, source, words, tmp_path):
  manifest = job.label(plan(words, threshold=2.0), Few(source, 3), tower,
                       tmp_path)
  assert manifest["unlabelled_share"] == 1.0
  ids, scores = store.Labels(tmp_path)[
      job.image_key(source[0]["images"][0])[0]]
  assert (ids == -1).all() and not scores.any()


def test_bad_plans_and_bad_scores(tower, source, words, tmp_path,
                                  monkeypatch):
  with pytest.raises(InputError) as error:
    plan(words, how="rwa", sign=0.5, n=0)
  for part in ("how: 'rwa'", "sign: 0.5", "n: 0 is below 1"):
    assert part in str(error.value)
  with pytest.raises(InputError, match="n = 12 words .* list of 11"):
    job.label(plan(words, n=12), source, tower, tmp_path / "a")
  monkeypatch.setattr(type(tower), "patch_embeds",
                      lambda *a, **k: np.full((32, 16, 64), np.nan))
  with pytest.raises(InputError, match="not numbers"):
    job.label(plan(words), source, tower, tmp_path / "b")
  assert not list((tmp_path / "b").glob("*.array_record"))


def test_a_broken_image_is_counted_and_left_without_labels(
    tower, source, words, tmp_path):
  good = [source[i]["images"][0] for i in range(3)]
  example = lambda i, images: {"id": str(i), "origin": f"list.json:{i}",
                               "images": images, "conversation": []}
  broken = b"\x89PNG\r\n broken"
  data = [example(0, good[:1]), example(1, []), example(2, [good[1], broken]),
          example(3, good[2:])]
  manifest = job.label(plan(words, shard=2), data, tower, tmp_path, batch=2)
  assert manifest["images"] == 3
  assert len(manifest["unreadable"]) == 1
  assert manifest["unreadable"][0].startswith("list.json:2: image 1: ")
  labels = store.Labels(tmp_path)
  assert all(job.image_key(image)[0] in labels for image in good)
  assert job.image_key(broken)[0] not in labels
  again = job.label(plan(words, shard=2), data, tower, tmp_path, batch=2)
  assert again == manifest
  with pytest.raises(InputError, match="list.json:0: .*not_there"):
    job.label(plan(words), [example(0, ["not_there.png"])], tower,
              tmp_path / "b")


def test_the_preset_says_how_patches_are_read(source, words, tmp_path,
                                              monkeypatch, capsys):
  monkeypatch.setitem(presets.LABELS["paper"], "clip",
                      dict(how="maskclip", sign=-1.0, layer=-2))
  options = json.dumps({"kind": "easy_vqa", "options": {
      "split": "test[:1%]", "form": "captions"}})
  argv = ["label", "--tower", TOWER, "--words", words, "--source", options,
          "--json", "--n", "2"]
  assert main([*argv, "--out", str(tmp_path / "a")]) == 0
  made = json.loads(capsys.readouterr().out)
  assert (made["how"], made["sign"], made["layer"]) == ("maskclip", -1.0, -2)
  assert main([*argv, "--out", str(tmp_path / "b"), "--how", "surgery",
               "--layer", "-1"]) == 0
  made = json.loads(capsys.readouterr().out)
  assert (made["how"], made["sign"], made["layer"]) == ("surgery", 1.0, -1)


def test_examples_come_with_their_labels(made, source, monkeypatch):
  folder, _ = made
  labels = store.Labels(folder)
  monkeypatch.setattr("align_jax.data.SOURCES.get",
                      lambda kind: lambda **options: source)
  found = Labelled({"kind": "x"}, str(folder), images=2)
  example = found[4]
  ids, scores = labels[job.image_key(source[4]["images"][0])[0]]
  extras = example["extras"]
  assert extras["sea_words"].shape == (2, 16, 3)
  np.testing.assert_array_equal(extras["sea_words"][0], ids)
  np.testing.assert_array_equal(extras["sea_scores"][0], scores)
  assert (extras["sea_words"][1] == -1).all()
  with pytest.raises(BadSample, match="has no labels .* other images"):
    source.count = 31
    try:
      found[30]
    finally:
      source.count = 23


def test_no_labels_there(tmp_path):
  with pytest.raises(InputError, match="it has no manifest.json"):
    store.Labels(tmp_path)


def test_verb(source, words, tmp_path, capsys):
  out = tmp_path / "labels"
  options = json.dumps({"kind": "easy_vqa", "options": {
      "split": "test[:1%]", "form": "captions"}})
  argv = ["label", "--tower", TOWER, "--words", words, "--source", options,
          "--out", str(out), "--how", "maskclip", "--n", "2", "--template",
          "a {}", "--json"]
  assert main(argv) == 0
  manifest = json.loads(capsys.readouterr().out)
  assert manifest["sign"] == 1.0 and 0 < manifest["images"] <= 10
  assert main(argv) == 0  # again: nothing is left to do
  assert json.loads(capsys.readouterr().out) == manifest
  assert main([*argv[:5], "--source", '{"kind": "easy_vqq"}', *argv[7:]]) == 2
  assert "did you mean 'easy_vqa'" in capsys.readouterr().err


def test_inspect_draws_counts_and_checks_the_sign(tower, words, tmp_path,
                                                  capsys):
  pytest.importorskip("fontawesomefree")
  options = {"split": "test", "form": "captions", "scenes": 6, "size": 64}
  made = plan(words, source={"kind": "icon_scenes", "options": options})
  source = IconScenes(**options)
  job.label(made, source, tower, tmp_path)
  assert main(["inspect", "labels", str(tmp_path), "--images", "2",
               "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert len(found["pictures"]) == 2
  assert all(Path(p).read_bytes()[:4] == b"\x89PNG" for p in found["pictures"])
  labels = store.Labels(tmp_path)
  first = [labels[key][0][:, 0] for key in labels.keys()]
  empty = np.mean([ids < 0 for ids in first])
  assert found["unlabelled_share"] == pytest.approx(empty)
  assert sum(share for _, share in found["frequent"]) == pytest.approx(1)
  inside, outside = [], []
  for scene in range(6):
    scores = labels[job.image_key(source.image(scene))[0]][1].max(-1)
    for patch, true in enumerate(source.truth(scene, 4)):
      (inside if true else outside).append(scores[patch])
  check = found["check"]
  assert check["foreground"] == pytest.approx(np.mean(inside), rel=1e-5)
  assert check["background"] == pytest.approx(np.mean(outside), rel=1e-5)
  assert check["hit_rate"] == 0.0  # mini_clip knows no icon
  assert check["chance"] == pytest.approx(3 / 11)
  assert main(["inspect", "labels", str(tmp_path)]) == 0
  assert "score" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(words, tmp_path):
  """By SIGKILL; what the second run leaves is what one run leaves."""
  options = json.dumps({"kind": "easy_vqa", "options": {
      "split": "test", "form": "captions"}})
  command = lambda out: [
      sys.executable, "-m", "align_jax.cli.main", "label", "--tower", TOWER,
      "--words", words, "--source", options, "--out", str(out), "--how",
      "maskclip", "--n", "2", "--template", "a {}", "--shard", "64"]
  killed, whole = tmp_path / "killed", tmp_path / "whole"
  running = subprocess.Popen(command(killed), env=os.environ.copy())
  while len(list(killed.glob("*.array_record"))) < 3:
    assert running.poll() is None
    time.sleep(0.01)
  running.send_signal(signal.SIGKILL)
  running.wait()
  assert not (killed / "index.npz").exists()
  for out in (killed, whole):
    subprocess.run(command(out), env=os.environ.copy(), check=True)
  files = sorted(p.name for p in whole.glob("labels-*.array_record"))
  assert len(files) > 5
  for name in files:
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
  shutil.rmtree(tmp_path)


def share_right(folder, source) -> float:
  """Of pictures in whose best patch the shape's own colour is found."""
  labels = store.Labels(folder)
  right = []
  for i in range(23):
    facts = source.source.facts(i)
    key, _ = job.image_key(source[i]["images"][0])
    ids, scores = labels[key]
    color = WORDS.index(facts["color"])
    right.append((ids[scores.max(-1).argmax()] == color).any())
  return float(np.mean(right))


def test_maskclip_finds_the_shape_and_the_other_sign_does_not(
    made, tower, source, words, tmp_path):
  """The sign check: a shape's own patches score its colour higher."""
  folder, _ = made
  found = share_right(folder, source)
  assert found > 3 / len(COLORS)
  flipped = plan(words, sign=-1.0, threshold=-2.0)
  job.label(flipped, source, tower, tmp_path, batch=5)
  assert share_right(tmp_path, source) < 0.5 * found
  assert Path(store.Labels(folder).words_file).read_text().split() == WORDS
