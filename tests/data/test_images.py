"""Images: what comes out, and every way a file can be bad."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from align_jax.data.images import BadImage, ImageReader, image_hashes, listed
from tests.data.samples import png


def clip(size: int) -> CLIPImageProcessorPil:
  return CLIPImageProcessorPil(size={"shortest_edge": size},
                               crop_size={"height": size, "width": size})


@pytest.fixture
def picture() -> Image.Image:
  rng = np.random.default_rng(0)
  return Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))


@pytest.mark.parametrize("processor", [
    clip(16), SiglipImageProcessorPil(size={"height": 16, "width": 16})])
def test_pixels_are_the_processors(processor, picture):
  pixels, box = ImageReader(processor, 16)(picture)
  assert pixels.dtype == np.uint8 and pixels.shape == (16, 16, 3)
  assert pixels.flags.c_contiguous
  assert box.dtype == np.int32 and box.tolist() == [0, 0, 16, 16]
  # Rescaled and normalised afterwards, they are what the processor gives.
  whole = processor(picture, return_tensors="np")["pixel_values"][0]
  ours = (pixels / 255 - processor.image_mean) / processor.image_std
  np.testing.assert_allclose(ours.transpose(2, 0, 1), whole, atol=1e-5)


def test_without_a_processor(picture):
  pixels, _ = ImageReader(None, 16)(picture)
  expected = np.asarray(picture.resize((16, 16), Image.BICUBIC))
  np.testing.assert_array_equal(pixels, expected)


def test_ways_to_name_an_image(tmp_path, picture):
  path = tmp_path / "a.png"
  picture.save(path)
  reader = ImageReader(clip(16), 16)
  expected, _ = reader(picture)
  for image in (path, str(path), path.read_bytes(), path.read_bytes,
                lambda: path, lambda: picture):
    np.testing.assert_array_equal(reader(image)[0], expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "LA", "1"])
def test_modes(mode, picture):
  pixels, _ = ImageReader(clip(16), 16)(picture.convert(mode))
  assert pixels.shape == (16, 16, 3)


def test_sixteen_bits():
  grey = np.full((20, 30), 32896, np.uint16)  # 128 of 255
  pixels, _ = ImageReader(clip(16), 16)(Image.fromarray(grey))
  assert (pixels == 128).all()
  with pytest.raises(BadImage, match="mode 'F'"):
    ImageReader(clip(16), 16)(Image.fromarray(grey.astype(np.float32)))


def test_photos_are_turned_upright(picture):
  buffer = io.BytesIO()
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was turned by 90 degrees
  picture.save(buffer, "PNG", exif=exif)
  reader = ImageReader(None, 16)
  expected, _ = reader(picture.transpose(Image.ROTATE_270))
  np.testing.assert_array_equal(reader(buffer.getvalue())[0], expected)


def test_missing(tmp_path):
  reader = ImageReader(clip(16), 16)
  with pytest.raises(BadImage, match="none.png' does not exist"):
    reader(tmp_path / "none.png")
  with pytest.raises(BadImage, match="is broken: .*directory"):
    reader(tmp_path)


def test_broken(tmp_path):
  reader = ImageReader(clip(16), 16)
  path = tmp_path / "a.jpg"
  path.write_bytes(b"this is a text")
  with pytest.raises(BadImage, match="a.jpg' is not in a known image format"):
    reader(path)
  buffer = io.BytesIO()
  rng = np.random.default_rng(0)
  Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(
      buffer, "JPEG")
  whole = buffer.getvalue()
  path.write_bytes(whole[:len(whole) // 2])
  with pytest.raises(BadImage, match="a.jpg' is broken: .*truncated"):
    reader(path)
  file = bytearray(png(0))
  file[45:50] = b"\0\0\0\0\0"
  with pytest.raises(BadImage, match="is broken"):
    reader(bytes(file))
  with pytest.raises(BadImage, match="known image format"):
    reader(b"")


def test_too_many_pixels_are_refused_before_decoding(monkeypatch):
  reader = ImageReader(clip(16), 16, max_pixels=99)
  reader(png(0, (9, 11)))
  large = png(0, (10, 10))
  monkeypatch.setattr("PIL.ImageFile.ImageFile.load",
                      lambda self: pytest.fail("decoded"))
  with pytest.raises(BadImage, match="10 x 10 = 100 pixels, more than "
                                     "max_pixels = 99"):
    reader(large)


def test_a_bomb_is_refused_before_decoding():
  """A header that claims a picture of a terabyte."""
  file = bytearray(png(0))
  file[16:24] = (1 << 20).to_bytes(4, "big") * 2
  file[29:33] = __import__("zlib").crc32(file[12:29]).to_bytes(4, "big")
  with pytest.raises(BadImage, match="max_pixels|too large"):
    ImageReader(clip(16), 16)(bytes(file))


def test_one_image_or_several(picture):
  pixels = np.asarray(picture)
  assert listed(None) == [] and listed("a.png") == ["a.png"]
  assert listed(picture) == [picture] and listed((b"", "b")) == [b"", "b"]
  assert len(listed(pixels)) == 1 and len(listed(pixels[None])) == 1
  reader = ImageReader(clip(16), 16)
  np.testing.assert_array_equal(reader(pixels)[0], reader(picture)[0])
  for wrong in (pixels / 255, pixels[..., 0], pixels[None]):
    with pytest.raises(BadImage, match=r"u8\[H,W,3\], not .*20, 30"):
      reader(wrong.copy())


def test_image_hashes(tmp_path):
  (tmp_path / "a.png").write_bytes(png(1))
  examples = [{"origin": "b", "images": [png(0), tmp_path / "a.png"]},
              {"origin": "c", "images": [lambda: png(0)]}]
  assert image_hashes(examples) == {
      hashlib.sha256(png(i)).hexdigest(): "b" for i in (0, 1)}


def test_processor_of_another_size(picture):
  with pytest.raises(ValueError, match="config and the tower's disagree"):
    ImageReader(clip(16), 32)(picture)


def test_scaled_decoding_is_near_and_refuses_nothing_small():
  ramp = np.linspace(0, 255, 96, dtype=np.uint8)
  wide = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, ::-1], 128),
                  axis=-1).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(wide).save(file, "JPEG", quality=95, exif=turned())
  whole, scaled = (ImageReader(None, 16, scaled_decode=on)(file.getvalue())[0]
                   for on in (False, True))
  assert 0 < np.abs(whole.astype(int) - scaled).max() <= 8  # and upright
  # Not smaller than the tower's images, so not at all.
  reader = ImageReader(None, 64, scaled_decode=True)
  np.testing.assert_array_equal(
      reader(file.getvalue())[0], ImageReader(None, 64)(file.getvalue())[0])
  # The bound on pixels holds for the file as it is.
  with pytest.raises(BadImage, match="96 x 96"):
    ImageReader(None, 16, 100, scaled_decode=True)(file.getvalue())


def test_an_opened_picture_stays_as_it_is():
  file = io.BytesIO()
  Image.new("RGB", (96, 96), "red").save(file, "JPEG")
  own = Image.open(file)
  ImageReader(None, 16, scaled_decode=True)(own)
  assert own.size == (96, 96)


def turned() -> Image.Exif:
  exif = Image.Exif()
  exif[0x0112] = 6
  return exif
