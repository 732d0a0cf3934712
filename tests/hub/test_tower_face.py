"""load_tower: what a notebook sees."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from align_jax.config import MeshConfig
from align_jax.data.images import BadImage
from align_jax.errors import InputError
from align_jax.hub.pretrained import save_hf
from align_jax.hub.tower_face import load_tower
from align_jax.parallel.mesh import make_mesh
from align_jax.towers import TOWERS
from align_jax.towers.vit import ViT, ViTConfig


def _save(config: ViTConfig, model_type: str, folder: Path) -> None:
  """A random tower of ours as a Hugging Face folder."""
  rng = np.random.default_rng(0)
  side = config.image_size
  params = jax.tree.map(
      lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32),
      jax.eval_shape(ViT(config).init, jax.random.key(0),
                     jnp.zeros((1, side, side, 3)))["params"])
  save_hf(params, model_type, config, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A SigLIP tower without a processor beside it."""
  where = tmp_path_factory.mktemp("siglip")
  _save(TOWERS.get("siglip")(image_size=16, patch_size=8, width=16, layers=2,
                             heads=2, mlp_width=16),
        "siglip_vision_model", where)
  return where


def test_pictures_in_features_out(folder: Path, tmp_path: Path) -> None:
  tower = load_tower(str(folder), layer=-2)
  pictures = [Image.new("RGB", (16, 16), (c, 0, 255)) for c in (0, 200)]
  pictures[0].save(tmp_path / "a.png")
  pixels = tower.process([tmp_path / "a.png", pictures[1]])
  assert pixels.shape == (2, 16, 16, 3)
  np.testing.assert_allclose(pixels[0, 0, 0], [-1, -1, 1], atol=1e-6)
  features = tower(pixels)
  assert features.shape == (2, 4, 16) and features.dtype == jnp.float32
  np.testing.assert_array_equal(tower.process(pictures[1]), pixels[1:])
  assert set(tower.provenance) >= {"patch_ijac", "layers/q_chk"}


def test_pictures_of_every_kind_are_processed(
    folder: Path, tmp_path: Path) -> None:
  tower = load_tower(folder)
  colours = np.random.default_rng(0).integers(0, 256, (2, 3), np.uint8)
  raw = np.tile(colours[:, None, None], (1, 16, 16, 1))  # u8[B,H,W,3]
  Image.fromarray(raw[0]).save(tmp_path / "a.png")
  file = tmp_path / "a.png"
  expected = tower(tower.process(list(map(Image.fromarray, raw))))
  for images in (raw, jnp.asarray(raw), list(raw), [file, raw[1]],
                 [file.read_bytes(), Image.fromarray(raw[1])]):
    np.testing.assert_array_equal(tower(images), expected)
  for image in (raw[0], file, str(file), Image.fromarray(raw[0])):
    assert tower(image).shape == (1, 4, 16)
    np.testing.assert_allclose(tower(image), expected[:1], atol=1e-6)
  for wrong in (raw.astype(np.int32), raw[0, :, :, 0], [raw[0] / 255]):
    with pytest.raises(BadImage, match=r"is u8\[H,W,3\], not "):
      tower(wrong)


def test_bfloat16(folder: Path) -> None:
  tower = load_tower(folder, dtype=jnp.bfloat16)
  assert tower(jnp.zeros((1, 16, 16, 3))).dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(tower.params)} == {
      jnp.dtype(jnp.bfloat16)}


def test_layer_and_class_token_when_loaded_or_when_called(
    tmp_path: Path) -> None:
  config = TOWERS.get("dinov2")(image_size=16, patch_size=8, width=16,
                                layers=2, heads=2, mlp_width=32, registers=3,
                                mask_token=True, antialias=True)
  _save(config, "dinov2_with_registers", tmp_path)
  pixels = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
  tower = load_tower(tmp_path)
  plain, kept = tower(pixels, layer=-2), tower(pixels, -2, True)
  assert plain.shape == (2, 4, 16) and kept.shape == (2, 5, 16)
  np.testing.assert_array_equal(kept[:, 1:], plain)
  assert np.abs(kept[:, 0] - tower(pixels, -1, True)[:, 0]).max() > 1e-3
  loaded = load_tower(tmp_path, layer=-2, with_class_token=True)
  np.testing.assert_array_equal(loaded(pixels), kept)
  np.testing.assert_array_equal(loaded(pixels, with_class_token=False), plain)
  np.testing.assert_array_equal(loaded(pixels, layer=-1), tower(
      pixels, with_class_token=True))


def test_a_mesh_spreads_parameters_and_changes_nothing(folder: Path) -> None:
  pixels = jax.random.normal(jax.random.key(0), (3, 16, 16, 3))
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  spread = load_tower(folder, mesh=mesh)
  assert not spread.params["layers"]["q_chk"].sharding.is_fully_replicated
  np.testing.assert_allclose(spread(pixels), load_tower(folder)(pixels),
                             atol=1e-5)


def test_what_cannot_be_read_is_said(folder: Path, tmp_path: Path) -> None:
  tower = load_tower(folder)
  with pytest.raises(ValueError, match="no images"):
    tower.process([])
  with pytest.raises(BadImage, match="does not exist"):
    tower.process([tmp_path / "none.png"])
  with pytest.raises(ValueError, match="reads pixels"):
    tower(jnp.zeros((1, 8, 8, 3)))
  with pytest.raises(ValueError, match="has none"):
    load_tower(folder, with_class_token=True)
  with pytest.raises(ValueError, match="has none"):
    tower(jnp.zeros((1, 16, 16, 3)), with_class_token=True)
  with pytest.raises(ValueError, match="counted from the end"):
    tower(jnp.zeros((1, 16, 16, 3)), layer=2)
  with pytest.raises(InputError, match="'siglip_vision_model', which has no "
                                       "text tower"):
    tower.text(["a cat"])
  with pytest.raises(InputError, match="there is no"):
    load_tower(folder / "other")
  (tmp_path / "config.json").write_text(
      '{"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2}')
  with pytest.raises(InputError, match="'llama' model, which is no vision"):
    load_tower(tmp_path)
