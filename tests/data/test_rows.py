"""Packed rows, computed again the slow, obvious way."""

import dataclasses

import grain
import numpy as np
import pytest

from align_jax.config import DataConfig
from align_jax.data import rows
from align_jax.data.images import ImageReader
from align_jax.data.render import Rendered
from tests.data.samples import example, mixed_examples

T, SIZE = 4, 8
CONFIG = DataConfig(row_length=96, images_per_row=3, labels_per_row=16)


def elements(renderer, samples):
  reader = ImageReader(None, SIZE)
  made = []
  for sample in samples:
    read = [reader(image) for image in sample["images"]]
    images = np.stack([p for p, _ in read]) if read else np.zeros(
        (0, SIZE, SIZE, 3), np.uint8)
    boxes = np.stack([b for _, b in read]) if read else np.zeros(
        (0, 4), np.int32)
    made.append(rows.element(renderer(sample), images, boxes))
  return made


def packed_rows(made, config=CONFIG):
  dataset = grain.MapDataset.source(made).to_iter_dataset()
  return list(rows.pack(dataset, config))


def all_rows(made, config=CONFIG):
  return [rows.row(p, T, config.images_per_row)
          for p in packed_rows(made, config)]


def samples_of(row):
  """The samples of a row as (tokens, weights, pixels that each token sees).

  A visual token is the pair (mean colour of its image, t): found through the
  row's bank of images, as the model finds it.
  """
  bank = [(image.mean(), t) for image in row["images"] for t in range(T)]
  for segment in range(1, row["segment_ids"].max() + 1):
    mine = np.flatnonzero(row["segment_ids"] == segment)
    seen = [bank[i] if i >= 0 else None for i in row["visual_index"][mine]]
    yield (row["tokens"][mine].tolist(), row["targets"][mine].tolist(),
           row["loss_weights"][mine].tolist(), seen)


def test_every_sample_is_whole_and_keeps_its_images(renderer):
  samples = mixed_examples(24)
  expected = []
  for sample in samples:
    rendered = renderer(sample)
    colours = [ImageReader(None, SIZE)(i)[0].mean() for i in sample["images"]]
    expected.append((
        rendered.tokens.tolist(), rendered.targets.tolist(),
        rendered.loss_weights.tolist(),
        [None if v < 0 else (colours[v // T], v % T)
         for v in rendered.visual.tolist()]))
  found = [s for row in all_rows(elements(renderer, samples))
           for s in samples_of(row)]
  assert len(found) == 24
  assert sorted(map(repr, found)) == sorted(map(repr, expected))


def test_budgets_hold_and_shapes_are_static(renderer):
  made = all_rows(elements(renderer, mixed_examples(40)))
  assert len(made) < 40
  counts = set()
  for row in made:
    assert row.pop("extras") == {}
    assert {k: (v.shape, v.dtype.name) for k, v in row.items()} == {
        "tokens": ((96,), "int32"), "targets": ((96,), "int32"),
        "loss_weights": ((96,), "float32"), "positions": ((96,), "int32"),
        "segment_ids": ((96,), "int32"), "visual_index": ((96,), "int32"),
        "images": ((3, SIZE, SIZE, 3), "uint8"),
        "image_segment_ids": ((3,), "int32"),
        "image_boxes": ((3, 4), "int32")}
    assert row["loss_weights"].sum() <= CONFIG.labels_per_row
    counts.add(int((row["image_segment_ids"] > 0).sum()))
  assert len(counts) > 1


def test_padding(renderer):
  for row in all_rows(elements(renderer, mixed_examples(12))):
    empty = row["segment_ids"] == 0
    for field in ("tokens", "targets", "loss_weights", "positions"):
      assert not row[field][empty].any()
    assert (row["visual_index"][empty] == -1).all()
    slots = row["image_segment_ids"] == 0
    assert not row["images"][slots].any()
    assert not row["image_boxes"][slots].any()
    assert (row["image_boxes"][~slots] == [0, 0, SIZE, SIZE]).all()


def test_positions_begin_anew_with_each_sample(renderer):
  for row in all_rows(elements(renderer, mixed_examples(12))):
    for segment in range(1, row["segment_ids"].max() + 1):
      mine = row["positions"][row["segment_ids"] == segment]
      np.testing.assert_array_equal(mine, np.arange(len(mine)))


def test_no_weight_reaches_over_a_sample(renderer):
  """The last position of a sample would predict the next sample's first."""
  for row in all_rows(elements(renderer, mixed_examples(12))):
    ends = np.flatnonzero(np.diff(row["segment_ids"]))
    assert not row["loss_weights"][ends].any()


def test_without_packing_each_sample_has_its_row(renderer):
  made = elements(renderer, mixed_examples(12))
  config = dataclasses.replace(CONFIG, pack=False)
  found = all_rows(made, config)
  assert len(found) == 12
  for sample, row in zip(made, found):  # in their order
    n = len(sample["tokens"])
    np.testing.assert_array_equal(row["tokens"][:n], sample["tokens"])
    assert row["segment_ids"].max() == 1


def test_special_tokens_come_after_all_images():
  """`visual` of -2 - x is entry N * T + x of the bank, for every sample."""
  def sample(visual, images):
    n = len(visual)
    rendered = Rendered(np.arange(n, dtype=np.int32),
                        np.zeros(n, np.int32), np.zeros(n, np.float32),
                        np.asarray(visual, np.int32), [], "", images)
    return rows.element(rendered, np.zeros((images, 2, 2, 3), np.uint8),
                        np.zeros((images, 4), np.int32))

  made = [sample([0, 1, 2, 3, -2, -1], 1), sample([-1, -3], 0),
          sample([-1, 4, 5, 6, 7, 0, 1, 2, 3, -3], 2)]
  config = DataConfig(row_length=20, images_per_row=3, labels_per_row=1)
  (row,) = all_rows(made, config)
  assert row["visual_index"].tolist() == [
      0, 1, 2, 3, 12, -1,
      -1, 13,
      -1, 8, 9, 10, 11, 4, 5, 6, 7, 13, -1, -1]


def test_text_only_rows(renderer):
  config = DataConfig(row_length=96, images_per_row=0, labels_per_row=16)
  samples = [example("what color?", "blue", number=i) for i in range(5)]
  for row in all_rows(elements(renderer, samples), config):
    assert row["images"].shape == (0, SIZE, SIZE, 3)
    assert (row["visual_index"] == -1).all()


@pytest.mark.parametrize("budget, message", [
    ({"row_length": 20}, r"\d+ tokens, more than data.row_length = 20"),
    ({"images_per_row": 1}, "2 images, more than data.images_per_row = 1"),
    ({"labels_per_row": 7},
     "8 supervised positions, more than data.labels_per_row = 7"),
    ({"text_length": 10},
     r"^\d+ tokens of text, more than data.text_length = 10$"),
])
def test_over_budget_says_what_and_how_much(renderer, budget, message):
  import re
  rendered = renderer(mixed_examples(3)[2])
  assert not rows.over_budget(rendered, CONFIG)
  config = dataclasses.replace(CONFIG, **budget)
  assert re.search(message, rows.over_budget(rendered, config))
