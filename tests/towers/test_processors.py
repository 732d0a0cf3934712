"""What a tower reads of a photo, against transformers' PIL processors.

Host and device together: resized and cropped to bytes, then rescaled and
normalised in JAX. The reference does all of it on the host, in floats.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import skimage
from PIL import Image
from sklearn.datasets import load_sample_image
from transformers import (
  BitImageProcessorPil,
  BlipImageProcessorPil,
  CLIPImageProcessorPil,
  Ovis2ImageProcessorPil,
  SiglipImageProcessorPil,
)

from align_jax.data.images import ImageReader
from align_jax.hub.pretrained import load_processor
from align_jax.towers.pixels import normalise


def _square(side: int) -> dict[str, int]:
  return {"height": side, "width": side}


# As the published checkpoints configure them; 2 is bilinear, 3 is bicubic.
PROCESSORS: dict[str, Any] = {
    "clip 224": CLIPImageProcessorPil(),
    "clip 336": CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size=_square(336)),
    "siglip 224": SiglipImageProcessorPil(),
    "siglip 384": SiglipImageProcessorPil(size=_square(384)),
    "siglip2 224": SiglipImageProcessorPil(resample=2),
    "siglip2 384": SiglipImageProcessorPil(size=_square(384), resample=2),
    "dinov2": BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size=_square(224),
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]),
    "instructblip": BlipImageProcessorPil(size=_square(224)),
    "ovis2": Ovis2ImageProcessorPil(size=_square(448)),
}


def side(processor: Any) -> int:
  crop = getattr(processor, "do_center_crop", None) and processor.crop_size
  return (crop or processor.size)["height"]


def check(processor: Any, picture: Image.Image) -> np.ndarray:
  """Pixels on the scale 0 to 1, once they equal the reference's."""
  want = processor(picture, return_tensors="np")["pixel_values"][0]
  want = want.transpose(1, 2, 0)
  bytes_, box = ImageReader(processor, side(processor))(picture)
  got = np.asarray(normalise(jnp.asarray(bytes_)[None], jnp.asarray(box)[None],
                             processor.image_mean, processor.image_std)[0])
  assert bytes_.dtype == np.uint8 and got.shape == want.shape
  std, mean = np.array(processor.image_std), np.array(processor.image_mean)
  # Before normalisation; far closer than the 1/255 that bytes could excuse.
  assert np.abs((got - want) * std).max() < 1e-5
  return got * std + mean


def photos() -> Iterator[tuple[str, Image.Image]]:
  """Real ones that packages ship."""
  for name in ("china.jpg", "flower.jpg"):
    yield name, Image.fromarray(load_sample_image(name))
  folder = Path(skimage.__file__).parent / "data"
  for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg",
               "camera.png", "coins.png", "page.png", "color.png",
               "brick.png", "grass.png", "moon.png", "motorcycle_left.png",
               "hubble_deep_field.jpg", "ihc.png", "cat.png"):
    if (folder / name).is_file():  # some releases download a few of these
      yield name, Image.open(folder / name)


@pytest.mark.parametrize("name", PROCESSORS)
def test_photos(name: str) -> None:
  for photo in ("china.jpg", "flower.jpg"):
    pixels = check(PROCESSORS[name], Image.fromarray(load_sample_image(photo)))
    assert pixels.std() > 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSORS)
def test_more_photos(name: str) -> None:
  found = [photo for photo, _ in photos()]
  assert len(found) >= 6, found
  for photo, picture in photos():
    pixels = check(PROCESSORS[name], picture)
    assert 0.01 < pixels.std() < 0.5, photo


@pytest.mark.parametrize("name", PROCESSORS)
def test_tiny_and_narrow(name: str) -> None:
  """One pixel; as few rows or columns as there are colours; ribbons."""
  photo = Image.fromarray(load_sample_image("china.jpg"))
  for left, top, width, height in (
      (100, 100, 1, 1), (300, 200, 2, 3), (300, 200, 3, 2), (300, 200, 3, 3),
      (300, 200, 1, 17), (200, 100, 5, 60), (200, 100, 60, 4),
      (0, 0, 225, 223), (0, 0, 224, 224)):
    check(PROCESSORS[name],
          photo.crop((left, top, left + width, top + height)))


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSORS)
def test_huge(name: str) -> None:
  """35 million pixels, lying and standing."""
  photo = Image.fromarray(load_sample_image("flower.jpg"))
  for size in ((7200, 4800), (4100, 8200)):
    check(PROCESSORS[name], photo.resize(size, Image.BICUBIC))


@pytest.mark.parametrize("name", ["clip 224", "siglip 224", "dinov2"])
def test_other_modes_and_files(name: str) -> None:
  photo = Image.fromarray(load_sample_image("china.jpg").copy()[:120, :200])
  for mode in ("L", "RGBA", "P", "CMYK", "1"):
    check(PROCESSORS[name], photo.convert(mode))
  file = io.BytesIO()
  photo.save(file, "JPEG")
  from_bytes, _ = ImageReader(PROCESSORS[name], 224)(file.getvalue())
  decoded, _ = ImageReader(PROCESSORS[name], 224)(Image.open(file))
  np.testing.assert_array_equal(from_bytes, decoded)


@pytest.mark.parametrize("name", PROCESSORS)
def test_what_transformers_writes_is_read(name: str, tmp_path: Path) -> None:
  """Every published processor comes back in its PIL form."""
  PROCESSORS[name].save_pretrained(tmp_path)
  again = load_processor(tmp_path)
  assert type(again) is type(PROCESSORS[name])
  photo = Image.fromarray(load_sample_image("china.jpg"))
  want, _ = ImageReader(PROCESSORS[name], side(again))(photo)
  np.testing.assert_array_equal(
      ImageReader(again, side(again))(photo)[0], want)
