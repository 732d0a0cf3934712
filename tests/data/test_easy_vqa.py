"""easy-VQA: the builder, derived facts, the three forms, test items."""

import io
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import easy_vqa
import numpy as np
import pytest
from PIL import Image

from align_jax.data import SOURCES
from align_jax.data.easy_vqa import source as source_module
from align_jax.data.easy_vqa.facts import (
    COLORS,
    SHAPES,
    derive,
    question_type,
)
from align_jax.data.easy_vqa.source import EasyVQA, prepare
from align_jax.errors import InputError


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> str:
  folder = tmp_path_factory.mktemp("datasets")
  prepare(folder)
  return str(folder)


@pytest.fixture(scope="session")
def test_split(data_dir) -> EasyVQA:
  return EasyVQA("test", "turns", data_dir)


@pytest.mark.parametrize("question, answer, expected", [
    ("what is the blue shape?", "circle", ("circle", "blue")),
    ("what color is the triangle?", "red", ("triangle", "red")),
    ("what color is the shape?", "gray", ("", "gray")),
    ("is there a circle?", "yes", ("circle", "")),
    ("is there a circle?", "no", ("", "")),
    ("is there not a circle?", "no", ("circle", "")),
    ("is no teal shape present?", "no", ("", "teal")),
    ("does the image not contain a black shape?", "yes", ("", "")),
])
def test_facts_of_one_question(question, answer, expected):
  assert derive([question], [answer]) == expected


def test_facts_by_elimination():
  asked = ["is there a circle?", "is a triangle present?"]
  assert derive(asked, ["no", "no"]) == ("rectangle", "")


def test_contradictions_are_refused():
  with pytest.raises(ValueError, match="contradictory"):
    derive(["what color is the shape?"] * 2, ["red", "blue"])
  with pytest.raises(ValueError, match="contradictory"):
    derive(["is there a circle?"] * 2, ["yes", "no"])
  with pytest.raises(ValueError, match="'maybe'"):
    derive(["is there a circle?"], ["maybe"])


def test_question_types():
  assert question_type("is there a circle?", "no") == "yes/no"
  assert question_type("what is the red shape?", "circle") == "shape"
  assert question_type("what color is the shape?", "red") == "color"


def test_a_part_of_a_split_keeps_the_samples_names(test_split, data_dir):
  parts = [EasyVQA(f"test[{part}]", "questions", data_dir)
           for part in (":90%", "90%:")]
  ids = [{f["image_id"] for f in p.images} for p in parts]
  assert not ids[0] & ids[1]
  assert ids[0] | ids[1] == {f["image_id"] for f in test_split.images}
  assert parts[1][0]["id"].startswith("easy_vqa/test/")


def test_records_are_the_packages(test_split):
  questions, answers, ids = easy_vqa.get_test_questions()
  paths = easy_vqa.get_test_image_paths()
  asked = defaultdict(list)
  for question, answer, image_id in zip(questions, answers, ids):
    asked[image_id].append((question, answer))
  assert len(test_split) == len(paths) == 1000
  for i in range(0, 1000, 37):
    facts = test_split.facts(i)
    assert facts["image_id"] == i  # the order is by image_id
    assert facts["file_name"] == f"test/{i}.png"
    assert list(zip(facts["questions"], facts["answers"])) == asked[i]
    with open(paths[i], "rb") as file:
      assert test_split[i]["images"][0]() == file.read()


def test_derived_colors_are_those_of_the_pixels(test_split):
  """An independent witness: pixels of one derived colour resemble."""
  means = []
  for facts in test_split.images:
    pixels = np.asarray(Image.open(io.BytesIO(
        test_split.image(facts["record"]))).convert("RGB"), np.float32)
    ground = np.median(pixels[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0)
    shape = np.abs(pixels - ground).sum(-1) > 60
    means.append(np.median(pixels[shape], axis=0))
  means = np.asarray(means)
  colors = np.asarray([f["color"] for f in test_split.images])
  centres = np.stack([means[colors == c].mean(0) for c in COLORS])
  known = colors != ""
  nearest = np.asarray(COLORS)[np.argmin(
      ((means[:, None] - centres) ** 2).sum(-1), axis=1)]
  assert (nearest == colors)[known].mean() > 0.99


def test_few_facts_are_unknown(test_split):
  shapes = Counter(f["shape"] for f in test_split.images)
  colors = Counter(f["color"] for f in test_split.images)
  assert set(shapes) == {*SHAPES, ""} and set(colors) == {*COLORS, ""}
  assert shapes[""] + colors[""] < 130


def test_turns(data_dir, test_split):
  example = test_split[3]
  assert example["id"] == "easy_vqa/test/3" and len(example["images"]) == 1
  facts = test_split.facts(3)
  messages = example["conversation"]
  assert messages[0]["content"].startswith("<image>\n")
  assert sum(m["content"].count("<image>") for m in messages) == 1
  asked = [m["content"].removeprefix("<image>\n") for m in messages[::2]]
  answers = [m["content"] for m in messages[1::2]]
  assert sorted(zip(asked, answers)) == sorted(zip(facts["questions"],
                                                   facts["answers"]))
  assert asked != facts["questions"]
  again, other = (EasyVQA("test", "turns", data_dir, seed=s) for s in (0, 1))
  assert again[3]["conversation"] == messages
  assert other[3]["conversation"] != messages


def test_questions(data_dir, test_split):
  source = EasyVQA("test", "questions", data_dir)
  asked = [(facts, number) for facts in test_split.images
           for number in range(len(facts["questions"]))]
  assert len(source) == len(asked) == 9673
  for i in (0, 6, 5000, 9672):
    facts, number = asked[i]
    assert source[i]["id"] == f"easy_vqa/test/{facts['image_id']}/{number}"
    assert source[i]["conversation"] == [
        {"role": "user", "content": "<image>\n" + facts["questions"][number]},
        {"role": "assistant", "content": facts["answers"][number]}]
    assert source.facts(i) == facts
    png = source[i]["images"][0]()
    assert png == test_split.image(facts["record"])
    assert Image.open(io.BytesIO(png)).size == (64, 64)


def test_captions(data_dir):
  source = EasyVQA("test", "captions", data_dir)
  assert (len(source), source.skipped) == (888, 112)
  for i in range(len(source)):
    facts = source.facts(i)
    assert source[i]["conversation"] == [
        {"role": "user", "content": "<image>"},
        {"role": "assistant",
         "content": f"a {facts['color']} {facts['shape']}"}]
    assert facts["color"] in COLORS and facts["shape"] in SHAPES


def test_unknown_options(data_dir):
  with pytest.raises(InputError, match="'caption' .* mean 'captions'"):
    EasyVQA("test", "caption", data_dir)
  with pytest.raises(InputError, match="'val' is not one of train, test"):
    EasyVQA("val", "turns", data_dir)
  assert SOURCES.get("easy_vqa") is EasyVQA


def test_the_package_is_named_where_it_is_missing(tmp_path, monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"pip install 'align-jax\[quickst"):
    prepare(tmp_path)
  assert not list(tmp_path.iterdir())


def test_files_are_written_once(data_dir, monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  assert prepare(data_dir).info.splits["train"].num_examples == 4000


def test_what_a_killed_process_left_is_replaced(tmp_path, monkeypatch,
                                                data_dir):
  """A folder without dataset_info.json is incomplete, whatever is in it."""
  broken = tmp_path / "easy_vqa" / "1.0.0"
  broken.mkdir(parents=True)
  (broken / "half.array_record").write_bytes(b"half")
  prepare(tmp_path)
  assert (broken / "dataset_info.json").exists()
  assert not (broken / "half.array_record").exists()
  assert [p.name for p in tmp_path.iterdir()] == ["easy_vqa"]


def test_default_folder(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert source_module.default_data_dir() == (
      tmp_path / "align_jax" / "datasets")
  monkeypatch.delenv("XDG_CACHE_HOME")
  assert source_module.default_data_dir().parts[-3:] == (
      ".cache", "align_jax", "datasets")


def test_neither_tensorflow_nor_torch(data_dir):
  code = ("import sys; from align_jax.data.easy_vqa.source import EasyVQA; "
          f"EasyVQA('test', 'turns', {data_dir!r})[0]['images'][0](); "
          "assert not {'tensorflow', 'torch'} & set(sys.modules)")
  subprocess.run([sys.executable, "-c", code], check=True,
                 cwd=Path(__file__).parents[2])


@pytest.mark.slow
def test_processes_that_start_together(tmp_path):
  code = ("from align_jax.data.easy_vqa.source import EasyVQA; "
          f"assert len(EasyVQA('train', 'turns', {str(tmp_path)!r})) == 4000")
  running = [subprocess.Popen([sys.executable, "-c", code],
                              cwd=Path(__file__).parents[2])
             for _ in range(3)]
  assert [p.wait() for p in running] == [0, 0, 0]
  assert [p.name for p in tmp_path.iterdir()] == ["easy_vqa"]
