"""Tiles against the original algorithms, and what is made of them."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from align_jax.config import DataConfig, TilingConfig
from align_jax.data import TILINGS
from align_jax.data.anyres import Anyres
from align_jax.data.coverage import Coverage
from align_jax.data.images import BadImage, ImageReader
from align_jax.data.pipeline import Pipeline
from align_jax.data.render import Renderer, show
from align_jax.data.rows import over_budget
from align_jax.data.tiling import NO_FRAME, Frame
from align_jax.errors import InputError
from align_jax.towers.pixels import normalise
from tests.data.samples import example, mixed_examples

SIDE = 384
# Heights and widths: both sides of a tile, all shapes, and the absurd.
TABLE = [
    (1, 1), (1, 2), (30, 20), (384, 384), (384, 385), (400, 384), (768, 768),
    (769, 767), (600, 800), (800, 600), (1024, 768), (480, 640), (427, 640),
    (2200, 1700), (1700, 2200), (3508, 2480), (300, 1200), (1200, 300),
    (100, 5000), (5000, 100), (9, 1152), (1, 20_000), (20_000, 1),
    (1152, 1152), (1153, 1151), (20_000, 1500), (383, 2000), (2304, 2304)]
OVIS = Frame(before=(0,), whole=(1,), column=(2,), row=(3,), after=(4,))


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (7, 5, 3), np.uint8)
  return Image.fromarray(small).resize((width, height), Image.BICUBIC)


@pytest.mark.parametrize("most", [9, 12])
def test_coverage_grids_are_the_originals(most):
  theirs = pytest.importorskip(
      "transformers.models.ovis2.image_processing_pil_ovis2")
  rng = np.random.default_rng(0)
  sizes = TABLE + [tuple(map(int, s)) for s in rng.integers(
      1, 3000, (40, 2))]
  found = {}
  for height, width in sizes:
    found[height, width] = Coverage(most).grid(height, width, SIDE)
    assert found[height, width] == theirs.get_min_tile_covering_grid(
        (height, width), SIDE, most, 0.9), (height, width)
  assert len(set(found.values())) > 8
  # By hand: what fits a tile is one; twice as wide is two columns.
  assert found[384, 384] == found[1, 1] == found[30, 20] == (1, 1)
  assert found[1152, 1152] == (3, 3)
  assert Coverage(9).grid(384, 768, SIDE) == (1, 2)
  assert Coverage(9).grid(768, 384, SIDE) == (2, 1)


def ovis_pixels(image: Image.Image, grid: tuple[int, int], side: int,
                processor) -> np.ndarray:
  """f32[slots,H,W,3] normalised: Ovis 1.6's `preprocess_image` by hand."""
  width, height = image.size
  rows, columns = grid
  crops = []
  for r in range(rows):
    for c in range(columns):
      right = width if c + 1 == columns else (c + 1) * (width // columns)
      lower = height if r + 1 == rows else (r + 1) * (height // rows)
      crops.append(image.crop(
          (c * (width // columns), r * (height // rows), right, lower)))
  if len(crops) > 1:
    crops = [image, *crops]
  out = np.zeros((len(crops), side, side, 3), np.float32)
  for square, crop in zip(out, crops):
    w, h = crop.size
    if w == h:
      size = (side, side)
    elif w > h:
      size = (int(h / w * side), side)
    else:
      size = (side, int(w / h * side))
    values = processor.preprocess(
        crop, size=dict(height=size[0], width=size[1]),
        return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    square[top:top + size[0], left:left + size[1]] = values
  return out


@pytest.mark.parametrize("size", [
    (30, 20), (32, 32), (33, 90), (90, 33), (64, 64), (97, 61), (20, 200)])
def test_coverage_pixels_are_the_originals(size):
  transformers = pytest.importorskip("transformers")
  side, image, tiling = 32, picture(*size), Coverage(9)
  processor = transformers.SiglipImageProcessorPil(
      image_mean=[0.4, 0.5, 0.6], image_std=[0.5, 0.4, 0.3])
  grid = tiling.grid(*size, side)
  want = ovis_pixels(image, grid, side, processor)
  pixels, boxes = tiling.tiles(image, side)
  got = np.asarray(normalise(pixels, boxes, (0.4, 0.5, 0.6), (0.5, 0.4, 0.3),
                             np.float32))
  assert got.shape == want.shape
  np.testing.assert_allclose(got, want, atol=2e-6)
  assert any(tuple(b) != (0, 0, side, side) for b in boxes) == (
      size != (32, 32) and size != (64, 64))
  places = tiling.places(*size, side, 4, NO_FRAME)
  assert places.slots == len(pixels)
  np.testing.assert_array_equal(places.visual, np.arange(4 * places.slots))


def test_coverage_leaves_a_pixel_where_the_original_asks_for_none():
  pixels, boxes = Coverage(9).tiles(picture(1, 2000), 32)
  assert len(pixels) == 10
  assert all(b[2] - b[0] == 1 and b[3] - b[1] == 32 for b in boxes)


@pytest.fixture(scope="module")
def grid():
  """Every grid of 1 x 1 to 6 x 6 tiles, as anyres_max_9 has them."""
  return [(SIDE * r, SIDE * c) for r in range(1, 7) for c in range(1, 7)]


def test_anyres_pinpoints_and_tokens_are_the_originals(grid):
  """The order of tokens, unpadded and with newlines, size by size."""
  torch = pytest.importorskip("torch")
  from types import SimpleNamespace

  from transformers.image_processing_utils import select_best_resolution
  from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
  across = 27
  vision = SimpleNamespace(image_size=SIDE, patch_size=SIDE // across)
  model = SimpleNamespace(config=SimpleNamespace(
      vision_config=vision, image_grid_pinpoints=grid))
  tiling, seen = Anyres(grid), set()
  for height, width in TABLE:
    if min(height, width) < 8 < max(height, width) // 50:
      continue  # the original leaves nothing of these: see below
    high, wide = select_best_resolution((height, width), grid)
    assert tiling.best(height, width) == (high, wide), (height, width)
    slots = 1 + high * wide // SIDE**2
    seen.add(slots)
    numbers = torch.arange(slots * across**2, dtype=torch.float64)
    packed, _ = LlavaNextModel.pack_image_features(
        model, [numbers.reshape(slots, across**2, 1)],
        torch.tensor([[height, width]]), "full",
        torch.tensor([-2.0], dtype=torch.float64))
    places = tiling.places(height, width, SIDE, across**2,
                           Frame(newline=(0,)))
    assert places.slots == slots
    np.testing.assert_array_equal(places.visual, packed[0][:, 0].numpy())
  assert len(seen) > 5


def test_anyres_flat_is_tile_after_tile(grid):
  places = Anyres(grid, merge="flat").places(SIDE, 2 * SIDE, SIDE, 3,
                                             Frame(newline=(0,)))
  np.testing.assert_array_equal(places.visual, np.arange(3 * places.slots))


@pytest.mark.parametrize("make,text", [
    (lambda: Anyres([]), "at least one pinpoint"),
    (lambda: Anyres([(8, 8)], merge="flatt"), "did you mean 'flat'"),
    (lambda: Anyres([(8, 8)]).places(8, 8, 8, 3, NO_FRAME), "to 'flat'"),
    (lambda: Anyres([(12, 8)]).places(12, 8, 8, 4, NO_FRAME), "no multiple"),
    (lambda: Coverage(0), "at least 1"),
    (lambda: Coverage(9, 1.0), "between 0 and 1"),
    (lambda: TILINGS.get("anyress"), "anyres"),
])
def test_what_cannot_be_is_said(make, text):
  with pytest.raises((InputError, KeyError), match=text):
    make()


def tiled_renderer(tokenizer, **options):
  return Renderer(tokenizer, "chat", tokens_per_image=4, **options)


def reader(tiling=None, size=8, max_pixels=1_000_000):
  return ImageReader(None, size, max_pixels, tiling or Coverage(9))


def rendered_of(renderer, images, text="<image>\nwhat color ?"):
  opened, places = reader().places(images, 4, renderer.frame)
  return renderer(example(text, "blue", images=opened), places)


def test_ovis_indicators_stand_where_ovis_puts_them(tokenizer):
  """Its `construct_image_placeholders`, for a grid and for a single tile."""
  renderer = tiled_renderer(tokenizer, prompt_tokens=2, frame=OVIS)
  rendered = rendered_of(renderer, [picture(16, 16)])
  seen = [int(v) for v in rendered.visual if v != -1]
  tile = lambda n: list(range(4 * n, 4 * n + 4))
  start, whole, column, row, end = ([-2 - 2 - x] for x in range(5))
  assert seen == [-2, -3, *start, *tile(0), *whole, *tile(1), *column,
                  *tile(2), *row, *tile(3), *column, *tile(4), *end]
  assert rendered.slots == 5 and rendered.n_images == 1
  assert "1 image(s) in 5 tiles" in show(rendered, tokenizer)
  rendered = rendered_of(renderer, [picture(5, 8)])
  assert [int(v) for v in rendered.visual if v != -1] == [
      -2, -3, *start, *tile(0), *whole, *end]


def test_images_of_a_sample_follow_one_another(tokenizer):
  renderer = tiled_renderer(tokenizer)
  rendered = rendered_of(renderer, [picture(8, 16), picture(5, 5)],
                         "<image> and <image> compare them")
  assert rendered.slots == 4
  visual = rendered.visual[rendered.visual >= 0]
  np.testing.assert_array_equal(visual, np.arange(16))


def test_tiles_beyond_the_budget_are_refused_with_their_number(tokenizer):
  rendered = rendered_of(tiled_renderer(tokenizer), [picture(24, 24)])
  config = DataConfig(row_length=200, images_per_row=9, labels_per_row=9,
                      tiling=TilingConfig("coverage"))
  assert rendered.slots == 10
  assert over_budget(rendered, config) == (
      "10 tiles, more than data.images_per_row = 9")
  assert not over_budget(rendered, dataclasses.replace(
      config, images_per_row=10))


def test_one_pixel_and_too_many():
  pixels, boxes = reader().slots([Image.new("RGB", (1, 1), (9, 8, 7))])
  assert pixels.shape == (1, 8, 8, 3) and (pixels == [9, 8, 7]).all()
  np.testing.assert_array_equal(boxes, [[0, 0, 8, 8]])
  pixels, boxes = reader().slots([Image.new("RGB", (20_000, 40))])
  assert len(pixels) == len(boxes) == 10
  with pytest.raises(BadImage, match="20000 x 20000 = 400,000,000 pixels"):
    reader().slots([Image.new("1", (20_000, 20_000))])


def test_packed_rows_hold_the_tiles_they_name(tokenizer):
  """Each visual token of a batch leads to the tile and box it should."""
  examples = []
  for i, sample in enumerate(mixed_examples(60)):
    images = [picture(5 + 9 * (i % 3), 6 + 7 * (i % 2), seed=10 * i + n)
              for n in range(len(sample["images"]))]
    examples.append(sample | {"images": images, "id": str(i)})
  tiling = Coverage(4)
  config = DataConfig(rows=2, row_length=128, images_per_row=12,
                      labels_per_row=32, workers=0,
                      tiling=TilingConfig("coverage", {"max_tiles": 4}))
  renderer, read = tiled_renderer(tokenizer), reader(tiling)
  batches = iter(Pipeline(config, {"a": 1.0}, renderer, read, 0,
                          sources={"a": examples}))
  wanted = {}
  for sample in examples:
    pixels, boxes = read.slots(sample["images"])
    for tile, box in zip(pixels, boxes):
      wanted[tile.tobytes()] = box
  tiles = 0
  for _ in range(4):
    batch = next(batches)
    for row in range(config.rows):
      used = batch["image_segment_ids"][row] > 0
      tiles += used.sum()
      for n in np.flatnonzero(used):
        np.testing.assert_array_equal(
            wanted[batch["images"][row, n].tobytes()],
            batch["image_boxes"][row, n])
      index = batch["visual_index"][row]
      shown = np.flatnonzero(index >= 0)
      # In order, each slot's four tokens, in a position of its own sample.
      np.testing.assert_array_equal(index[shown], np.arange(4 * used.sum()))
      np.testing.assert_array_equal(
          batch["segment_ids"][row, shown],
          batch["image_segment_ids"][row, index[shown] // 4])
  batches.close()
  assert tiles > 20
