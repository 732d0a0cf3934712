"""Normalisation on the device, against the reference's on the host."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from align_jax.data.images import ImageReader
from align_jax.towers.pixels import normalise

PHOTOS = ("china.jpg", "flower.jpg")


@pytest.mark.parametrize("make, side", [
    (CLIPImageProcessorPil, 224), (SiglipImageProcessorPil, 224)])
def test_equals_the_processor_on_photos(make, side: int) -> None:
  processor = make()
  photos = [Image.fromarray(load_sample_image(name)) for name in PHOTOS]
  want = processor(photos, return_tensors="np")["pixel_values"]
  read = [ImageReader(processor, side)(photo) for photo in photos]
  pixels, boxes = map(np.stack, zip(*read))
  got = normalise(jnp.asarray(pixels), jnp.asarray(boxes),
                  processor.image_mean, processor.image_std)
  assert pixels.dtype == np.uint8 and want.std() > 0.5
  np.testing.assert_allclose(got, want.transpose(0, 2, 3, 1), atol=1e-5)


def test_outside_the_box_is_zero_after_normalisation() -> None:
  """As if a photo were padded after normalisation, not before."""
  photo = np.asarray(load_sample_image("china.jpg"))[:60, :80]
  padded = np.full((64, 96, 3), 255, np.uint8)
  padded[2:62, 10:90] = photo
  boxes = jnp.array([[2, 10, 62, 90], [0, 0, 0, 0], [0, 0, 64, 96]])
  got = normalise(jnp.stack([jnp.asarray(padded)] * 3), boxes,
                  (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
  alone = normalise(jnp.asarray(photo)[None], None,
                    (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))[0]
  want = np.zeros((64, 96, 3), np.float32)
  want[2:62, 10:90] = alone
  np.testing.assert_array_equal(got[0], want)
  assert not got[1].any()
  assert (got[2, 0] != 0).all()


def test_dtype_is_that_asked_for() -> None:
  images = jnp.zeros((1, 2, 2, 3), jnp.uint8)
  out = normalise(images, None, (0.5,) * 3, (0.5,) * 3, jnp.bfloat16)
  assert out.dtype == jnp.bfloat16 and (out == -1).all()


@pytest.mark.parametrize("images, boxes, text", [
    (np.zeros((1, 2, 2, 3), np.float32), None, "raw pixels u8"),
    (np.zeros((1, 3, 2, 2), np.uint8), None, "raw pixels u8"),
    (np.zeros((2, 2, 3), np.uint8), None, "raw pixels u8"),
    (np.zeros((2, 2, 2, 3), np.uint8), np.zeros((1, 4), np.int32),
     "boxes for 2 images"),
])
def test_what_is_no_batch_of_images_is_refused(images, boxes, text) -> None:
  boxes = None if boxes is None else jnp.asarray(boxes)
  with pytest.raises(ValueError, match=text):
    normalise(jnp.asarray(images), boxes, (0.5,) * 3, (0.5,) * 3)
