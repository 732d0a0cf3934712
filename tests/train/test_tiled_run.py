"""Images in tiles from a config's line to an answer."""

import json
from pathlib import Path

import numpy as np
import pytest

from align_jax import load_run
from align_jax.cli.main import main
from align_jax.config import load_config
from align_jax.data.pipeline import open_source
from align_jax.errors import ConfigError, InputError
from align_jax.validate import validate
from tests.data.samples import png
from tests.train import tiny_run

# Of the tower's 16 pixels: one tile, two, four, and more than there are.
SIZES = [(8, 8), (40, 14), (32, 32), (14, 40)]
FIELDS = ("data.tiling.kind=coverage", "data.tiling.options={'max_tiles': 4}",
          "data.images_per_row=10", "data.row_length=96", "stages[0].steps=2",
          "model.prompt_tokens=1", "stages[0].train={'connector/*': 1e-2, "
          "'prompt_xd': 1e-2}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
  folder = tmp_path_factory.mktemp("tiled")
  tiny_run.make(folder)
  for i, path in enumerate(sorted(folder.glob("*.png"))):
    path.write_bytes(png(3 * i, SIZES[i % len(SIZES)]))
  return folder


def read(folder: Path, *fields: str):
  config = str(folder / "tiny_config.py")
  return validate(load_config(f"{config}:ovis", fields), config)


@pytest.fixture(scope="module")
def run(folder: Path):
  done = main(["train", "--config", f"{folder / 'tiny_config.py'}:ovis",
               "--workdir", str(folder / "run"),
               "--config.model.connector.options={'words': 24, 'stride': 1}",
               *(f"--config.{f}" for f in FIELDS)])
  assert done == 0
  return load_run(folder / "run")


def test_training_fills_image_slots_with_tiles(run):
  lines = (run.workdir / "metrics.jsonl").read_text().splitlines()
  assert len(lines) == 2
  assert all(np.isfinite(json.loads(line)["loss"]) for line in lines)


def test_a_prompt_is_what_training_saw_up_to_the_answer(run):
  source = open_source("mixed", run.config.data.sources["mixed"])
  renderer, slots = run.renderer, []
  for i in (1, 2, 4, 5, 7, 8):
    example = source[i]
    images, places = run.reader.places(
        example["images"], renderer.tokens_per_image, renderer.frame)
    whole = renderer({**example, "images": images}, places)
    prompt = run.prompt(source[i])
    n = len(prompt.tokens)
    np.testing.assert_array_equal(prompt.visual, whole.visual[:n])
    np.testing.assert_array_equal(prompt.tokens, whole.tokens[:n])
    pixels, boxes = run.read(example["images"])
    assert len(pixels) == len(boxes) == whole.slots
    slots.append(whole.slots / len(images))
    # Start, grid and end of each image, behind the learned prompt token.
    assert sorted(-2 - v for v in prompt.visual[prompt.visual < -1])[:2] == [
        0, 1]
  assert len(set(slots)) > 2 and max(slots) > 2


def test_the_same_run_answers_about_tiles(run, folder):
  images = sorted(folder.glob("*.png"))[:3]
  answers = run.generate(images, ["what color ?"] * 3, max_new_tokens=2)
  assert len(answers) == 3 and all(isinstance(a, str) for a in answers)


def test_a_newline_of_the_models_own_ends_rows_for_any_connector(folder):
  from align_jax.build import build
  config = read(folder, "data.tiling.kind=anyres",
                "data.tiling.options={'grid': [[16, 32], [32, 16]]}",
                "model.newline=True", "model.prompt_tokens=2",
                "stages[0].train={'connector/*': 1e-2, 'newline_xd': 1e-2, "
                "'prompt_xd': 1e-2}",
                "model.connector.options={'words': 24, 'stride': 1}")
  parts = build(config.model)
  assert parts.frame.newline == (0,) and parts.frame.before == (1,)
  places = parts.reader(config.data).tiling.places(16, 32, 16, 4, parts.frame)
  # The whole, Ovis' mark (its second special token, the newline before all
  # of its own), and two rows of four patches with a newline each.
  assert places.visual.tolist() == [
      0, 1, 2, 3, -2 - 2, 4, 5, 8, 9, -2, 6, 7, 10, 11, -2]


@pytest.mark.parametrize("fields,text", [
    (["data.tiling.kind=coverge"], "did you mean 'coverage'"),
    (["data.tiling.kind=coverage", "data.scaled_decode=true"],
     "data.scaled_decode: tiles want every pixel"),
    (["data.tiling.kind=coverage", "data.tiling.options={'most': 3}"],
     "data.tiling.options.most: unknown option"),
    (["data.tiling.kind=coverage", "data.tiling.options={'max_tiles': 0}"],
     "data.tiling.options: coverage: max_tiles = 0"),
    (["data.tiling.kind=anyres"], "data.tiling.options.grid: missing"),
    (["model.newline=True"], "no stage trains newline_xd"),
])
def test_faults_of_a_config(folder, fields, text):
  with pytest.raises(ConfigError, match=text):
    read(folder, *fields)


def test_tokens_that_are_no_square_are_refused_before_anything_is_read(folder):
  from align_jax.build import build
  config = validate(load_config(
      f"{folder / 'tiny_config.py'}:perceiver",
      ["data.tiling.kind=anyres", "data.tiling.options={'grid': [[16, 16]]}",
       "model.connector.options={'latents': 3}"]), "tiny")
  with pytest.raises(InputError, match="merge to 'flat'"):
    build(config.model).reader(config.data)


def test_two_newlines_are_one_too_many(folder):
  from align_jax.build import build
  config = validate(load_config(
      f"{folder / 'tiny_config.py'}:mlp",
      ["model.newline=True", "model.connector.options={'newline': True}",
       "stages[0].train={'newline_xd': 1.0}"]), "tiny")
  with pytest.raises(InputError, match="one of them"):
    build(config.model)
