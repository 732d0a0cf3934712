"""The processor of a model that reads an image in several tiles."""

import numpy as np
from PIL import Image
from transformers.image_utils import make_flat_list_of_images

from .processing_align_jax import AlignJaxProcessor
from .STRATEGY_align_jax import Strategy
from .tiling_align_jax import Frame, special


class AlignJaxTilesProcessor(AlignJaxProcessor):
  """Gives, beside the tiles of all images in `pixel_values`,

    image_tiles   [images], of how many tiles each image is
    image_places  [images, n], what each of its tokens shows: tile * T + t is
                  token t of a tile, -2 - x the special token x, -1 padding

  tiling: `options` of the strategy, `side` of a tile, its `tokens` T, and the
  numbers of the special tokens around and inside an image, `frame`.
  """

  def __init__(self, image_processor=None, tokenizer=None, patch_size=None,
               vision_feature_select_strategy=None, chat_template=None,
               image_token="<image>", num_additional_image_tokens=0,
               tokens_per_image=0, instruction_length=0, tiling=None,
               **kwargs):
    self.tiling = tiling
    super().__init__(
        image_processor, tokenizer, patch_size,
        vision_feature_select_strategy, chat_template, image_token,
        num_additional_image_tokens, tokens_per_image, instruction_length,
        **kwargs)

  def _process_images(self, images, **kwargs):
    side, tokens = self.tiling["side"], self.tiling["tokens"]
    frame = Frame(*map(tuple, self.tiling["frame"]))
    strategy = Strategy(**self.tiling["options"])
    mean, std = (np.float32(getattr(self.image_processor, name))
                 for name in ("image_mean", "image_std"))
    pixels, places, counts = [], [], []
    for picture in map(_picture, make_flat_list_of_images(images)):
      tiles, boxes = strategy.tiles(picture, side)
      found = strategy.places(
          picture.height, picture.width, side, tokens, frame)
      places.append(np.concatenate([special(frame.before), found.visual,
                                    special(frame.after)]))
      counts.append(len(tiles))
      for tile, (top, left, bottom, right) in zip(tiles, boxes):
        shown = np.zeros(tile.shape, np.float32)  # padding is zero
        inside = np.s_[top:bottom, left:right]
        shown[inside] = (np.float32(tile[inside]) / 255 - mean) / std
        pixels.append(shown.transpose(2, 0, 1))
    longest = max(map(len, places))
    data = {
        "pixel_values": np.stack(pixels),
        "image_tiles": np.asarray(counts, np.int64),
        "image_places": np.stack([
            np.pad(p, (0, longest - len(p)), constant_values=-1)
            for p in places]).astype(np.int64)}
    return data, [self.image_token * len(p) for p in places]


def _picture(image):
  """In RGB; an array is [height, width, 3] or [3, height, width]."""
  if not isinstance(image, Image.Image):
    image = np.asarray(image)
    if image.shape[-1] != 3:
      image = image.transpose(1, 2, 0)
    image = Image.fromarray(image.astype(np.uint8))
  return image.convert("RGB")
