"""load_tower: what a notebook sees."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from align_jax.data.images import BadImage
from align_jax.errors import InputError
from align_jax.hub.pretrained import save_hf
from align_jax.hub.tower_face import load_tower
from align_jax.towers import TOWERS
from align_jax.towers.vit import ViT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A SigLIP tower without a processor beside it."""
  config = TOWERS.get("siglip")(image_size=16, patch_size=8, width=16,
                                layers=2, heads=2, mlp_width=16)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32),
      jax.eval_shape(ViT(config).init, jax.random.key(0),
                     jnp.zeros((1, 16, 16, 3)))["params"])
  where = tmp_path_factory.mktemp("siglip")
  save_hf(params, "siglip_vision_model", config, where)
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


def test_what_cannot_be_read_is_said(folder: Path, tmp_path: Path) -> None:
  tower = load_tower(folder)
  with pytest.raises(ValueError, match="no images"):
    tower.process([])
  with pytest.raises(BadImage, match="does not exist"):
    tower.process([tmp_path / "none.png"])
  with pytest.raises(ValueError, match="reads pixels"):
    tower(jnp.zeros((1, 8, 8, 3)))
  with pytest.raises(ValueError, match="has none"):
    load_tower(folder, class_token=True)
  with pytest.raises(InputError, match="there is no"):
    load_tower(folder / "other")
  (tmp_path / "config.json").write_text(
      '{"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2}')
  with pytest.raises(InputError, match="'llama' model, which is no vision"):
    load_tower(tmp_path)
