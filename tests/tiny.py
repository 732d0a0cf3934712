"""A VLM small enough for every test, and batches for it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.connectors import CONNECTORS
from align_jax.decoders.transformer import Decoder, DecoderConfig
from align_jax.parallel.layout import Layout
from align_jax.towers.vit import ViT, ViTConfig
from align_jax.vlm import VLM

TOWER = ViTConfig(image_size=16, patch_size=8, width=16, layers=2, heads=2,
                  mlp_width=32)
DECODER = DecoderConfig(vocab_size=64, width=16, layers=2, heads=4,
                        kv_heads=2, mlp_width=32)
PATCHES = TOWER.patches  # 4, and as many visual tokens


def tiny_vlm(connector: str = "mlp", layout: Layout = Layout(),
             remat: str = "none", dtype: Any = jnp.float32,
             **options: Any) -> VLM:
  shared = dict(layout=layout, dtype=dtype)
  return VLM(
      ViT(TOWER, remat=remat, **shared),
      CONNECTORS.get(connector)(
          dim_out=DECODER.width, vocab_size=DECODER.vocab_size, **shared,
          **options),
      Decoder(DECODER, remat=remat, **shared), layout)


def random_batch(seed: int = 0, rows: int = 8, length: int = 16,
                 images: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
  """Rows of two packed samples; row r has images[r % len(images)] images.

  The first sample of a row holds its images, one after the other:
    text img*4 (text img*4) text ... | text ... | padding
  """
  rng = np.random.default_rng(seed)
  slots = 2
  batch = dict(
      tokens=rng.integers(0, DECODER.vocab_size, (rows, length)),
      targets=rng.integers(0, DECODER.vocab_size, (rows, length)),
      loss_weights=np.zeros((rows, length)),
      positions=np.zeros((rows, length)),
      segment_ids=np.zeros((rows, length)),
      images=rng.integers(0, 256, (rows, slots, 16, 16, 3)),
      image_segment_ids=np.zeros((rows, slots)),
      image_boxes=np.tile([0, 0, 16, 16], (rows, slots, 1)),
      visual_index=np.full((rows, length), -1),
      extras={})
  first, end = length - 5, length - 1
  for r in range(rows):
    count = images[r % len(images)]
    batch["segment_ids"][r, :first] = 1
    batch["segment_ids"][r, first:end] = 2
    batch["positions"][r, :first] = np.arange(first)
    batch["positions"][r, first:end] = np.arange(end - first)
    batch["image_segment_ids"][r, :count] = 1
    for i in range(count):
      at = 1 + i * (PATCHES + 1)
      batch["visual_index"][r, at:at + PATCHES] = (
          i * PATCHES + np.arange(PATCHES))
    batch["loss_weights"][r, first - 1] = 1
    batch["loss_weights"][r, end - 2:end] = 1
    batch["image_boxes"][r, count:] = 0
  dtypes = dict(loss_weights=np.float32, images=np.uint8)
  return {k: v if k == "extras" else v.astype(dtypes.get(k, np.int32))
          for k, v in batch.items()}


def tiny_params(model: VLM, batch: dict[str, Any], seed: int = 0) -> Any:
  """Random parameters of the model."""
  return jax.jit(model.init)(jax.random.key(seed), batch)["params"]
