"""Whole LLaVA models through `load_vlm`, against transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

import align_jax  # noqa: E402
from align_jax.data.anyres import Anyres  # noqa: E402
from align_jax.data.tiling import Frame  # noqa: E402
from align_jax.errors import InputError  # noqa: E402
from tests.hub import llava_folder as hf  # noqa: E402

WORDS = "what is the color of the circle?"
SIZES = [(20, 9), (9, 20), (13, 13), (40, 11), (8, 8)]


@pytest.fixture(scope="module", params=[
    "llava", "next", "siglip", "siglip_last"])
def pair(request: Any, tmp_path_factory: Any) -> Any:
  folder = tmp_path_factory.mktemp(request.param)
  model, processor = hf.save(
      folder, anyres=request.param == "next", bos=request.param == "llava",
      tower="siglip" if "siglip" in request.param else "clip",
      **(dict(vision_feature_layer=-1) if "last" in request.param else {}))
  return folder, model, processor, align_jax.load_vlm(folder)


@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES[1:3]])
def test_logits_and_answers(pair: Any, sizes: Any) -> None:
  check(*pair[1:], sizes)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("options", [
    {}, dict(anyres=True), dict(anyres=True, tower="siglip"),
    dict(vision_feature_layer=-3, vision_feature_select_strategy="full"),
    dict(projector_hidden_act="gelu_pytorch_tanh")])
def test_other_seeds_and_shapes(options: Any, seed: int,
                                tmp_path: Path) -> None:
  pair = hf.save(tmp_path, seed=seed, **options)
  check(*pair, align_jax.load_vlm(tmp_path), SIZES[seed:seed + 3:2])


def check(model: Any, processor: Any, run: Any, sizes: Any) -> None:
  """The same logits, and the same answer token for token."""
  images = [hf.picture(*size, seed=i) for i, size in enumerate(sizes)]
  said, want = hf.theirs(model, processor, images, WORDS)
  got = hf.logits_of(run, images, WORDS)
  assert got.shape == want.shape and want.std() >= 1
  assert np.abs(got - want).max() / max(1, want.std()) < 1e-4
  assert run.generate(images, WORDS, max_new_tokens=8) == said


def test_it_is_a_hub_model_of_its_kind(pair: Any) -> None:
  folder, _, _, run = pair
  from align_jax import hub
  assert type(hub.load(folder)) is type(run)
  assert set(run.origins) == set(
      f"{part}/{'/'.join(str(k.key) for k in path)}"
      for part, tree in run.params.items()
      for path, _ in __import__("jax").tree_util.tree_leaves_with_path(tree))
  assert all(":" in origin for origin in run.origins.values())


@pytest.mark.parametrize("size", SIZES)
def test_anyres_pixels_and_places(size: tuple[int, int]) -> None:
  image = hf.picture(*size)
  processor = transformers.LlavaNextImageProcessorPil(
      image_grid_pinpoints=hf.GRID, size={"shortest_edge": hf.SIDE},
      crop_size={"height": hf.SIDE, "width": hf.SIDE})
  want = processor(image, do_rescale=False, do_normalize=False,
                   return_tensors="np")["pixel_values"][0]
  tiling = Anyres(hf.GRID)
  tiles, boxes = tiling.tiles(image, hf.SIDE)
  np.testing.assert_array_equal(boxes, [[0, 0, hf.SIDE, hf.SIDE]] * len(tiles))
  np.testing.assert_array_equal(tiles.transpose(0, 3, 1, 2), want)
  places = tiling.places(size[1], size[0], hf.SIDE,
                         (hf.SIDE // hf.PATCH) ** 2, Frame(newline=(0,)))
  assert places.slots == len(tiles)
  assert (places.visual == -2).sum() > 0
  real = places.visual[places.visual >= 0]
  assert len(np.unique(real)) == len(real) <= len(tiles) * 4


def test_without_newlines_or_unpadding_parity_breaks(
    tmp_path: Path) -> None:
  model, processor = hf.save(tmp_path, anyres=True)
  run = align_jax.load_vlm(tmp_path)
  image = hf.picture(40, 11)
  _, want = hf.theirs(model, processor, [image], WORDS)
  got = hf.logits_of(run, [image], WORDS)
  assert np.abs(got - want).max() < 1e-3
  run.params["connector"]["newline_xd"] = (
      run.params["connector"]["newline_xd"] * 0)
  assert np.abs(hf.logits_of(run, [image], WORDS) - want).max() > 1e-2


def test_what_belongs_to_no_part_is_refused_with_the_rest(
    tmp_path: Path) -> None:
  from safetensors.numpy import load_file, save_file
  hf.save(tmp_path)
  file = tmp_path / "model.safetensors"
  tensors = load_file(file)
  tensors["image_newline"] = np.zeros(24, np.float32)
  tensors["vision_tower.encoder.layers.1.mlp.fc3.weight"] = np.zeros(
      (2, 2), np.float32)
  for n in (0, 1):
    tensors.pop(f"language_model.model.layers.{n}.mlp.up_proj.weight")
  save_file(tensors, file)
  with pytest.raises(InputError) as error:
    align_jax.load_vlm(tmp_path)
  assert str(error.value) == f"""the weights do not fit the model:
 tower, from {tmp_path}:
  unexpected 'vision_tower.encoder.layers.1.mlp.fc3.weight'
 connector, from {tmp_path}:
  unexpected 'image_newline'
 decoder, from {tmp_path}:
  missing 'model.layers.{{0..1}}.mlp.up_proj.weight' (our layers/up_df)"""


def test_default_strategy_needs_a_class_token(tmp_path: Path) -> None:
  hf.save(tmp_path, tower="siglip")
  config = json.loads((tmp_path / "config.json").read_text())
  config["vision_feature_select_strategy"] = "default"
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(InputError, match="drops the first patch"):
    align_jax.load_vlm(tmp_path)


def test_a_decoder_is_no_whole_model(tmp_path: Path) -> None:
  (tmp_path / "config.json").write_text(json.dumps(
      {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}))
  with pytest.raises(InputError, match="load_decoder"):
    align_jax.load_vlm(tmp_path)
