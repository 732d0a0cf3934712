"""Samples of any length -> rows of one size.

A row has three budgets: L tokens, N images, M supervised positions. Grain's
first-fit packing fills all three together; a sample stays whole, and one that
exceeds a budget by itself is refused with the numbers, never cut.

  tokens             a a a a a b b b . .     two samples and padding
  segment_ids        1 1 1 1 1 2 2 2 0 0
  positions          0 1 2 3 4 0 1 2 0 0
  images             A B                     one of each sample, N = 3
  image_segment_ids  1 2 0

What connectors and objectives declare beyond these (`extras`, see batch.py)
has a budget each as well: one entry a sample.
"""

from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax
import numpy as np

from align_jax.config import DataConfig
from align_jax.data.example import BadSample, Example
from align_jax.data.render import Rendered

# Rows that are open at a time. More waste less, and hold more images.
OPEN_ROWS = 8

Extras = Mapping[str, jax.ShapeDtypeStruct]
# An example -> its own entries of `extras`, see connectors/protocol.py.
Annotate = Callable[[Example], dict[str, np.ndarray]]
ENTRY = "extras/"  # before a field's name, while rows are packed


def over_budget(rendered: Rendered, config: DataConfig) -> str:
  """Which budgets of a row a sample exceeds by itself; "" if none."""
  text = np.count_nonzero(rendered.visual == -1)
  budgets = (
      (len(rendered), config.row_length, "tokens", "row_length"),
      (rendered.slots, config.images_per_row,
       "tiles" if config.tiling.kind else "images", "images_per_row"),
      (rendered.n_labels, config.labels_per_row, "supervised positions",
       "labels_per_row"),
      (text, config.text_length or text, "tokens of text", "text_length"))
  return "; ".join(f"{has:,} {what}, more than data.{field} = {allowed:,}"
                   for has, allowed, what, field in budgets if has > allowed)


def extras_of(example: Example, declared: Extras) -> dict[str, np.ndarray]:
  """A sample's own entry [1,...] for each declared field [B,S,...].

  Raises:
    BadSample: an array of another shape or dtype.
  """
  found = {}
  for name, spec in declared.items():
    given = example.get("extras", {}).get(name)
    entry = (np.zeros(spec.shape[2:], spec.dtype) if given is None
             else np.asarray(given))
    if (entry.shape, entry.dtype) != (spec.shape[2:], spec.dtype):
      raise BadSample(
          example["origin"], f"extras[{name!r}] is {entry.dtype}"
          f"{list(entry.shape)}, not {spec.dtype}{list(spec.shape[2:])}")
    found[ENTRY + name] = entry[None]
  return found


def annotated(example: Example, annotate: Annotate | None) -> Example:
  """The example with the fields that `annotate` makes of it.

  Raises:
    BadSample: no field can be made.
  """
  if annotate is None:
    return example
  made = annotate(example) | example.get("extras", {})
  return {**example, "extras": made}


def element(rendered: Rendered, images: np.ndarray,
            boxes: np.ndarray) -> dict[str, np.ndarray]:
  """A sample for packing: images u8[n,H,W,3], boxes i32[n,4]."""
  return {
      "tokens": rendered.tokens,
      "targets": rendered.targets,
      "loss_weights": rendered.loss_weights,
      "visual": rendered.visual,
      "images": images,
      "boxes": boxes,
      # Only their number matters: it fills the budget of M.
      "labels": np.ones(rendered.n_labels, np.int8),
  }


def pack(samples: grain.IterDataset, config: DataConfig,
         extras: Extras | None = None) -> grain.IterDataset:
  """Rows out of samples; with `config.pack` off, each sample has its own."""
  lengths = dict.fromkeys(("tokens", "targets", "loss_weights", "visual"),
                          config.row_length)
  lengths |= dict.fromkeys(("images", "boxes"), config.images_per_row)
  lengths["labels"] = config.labels_per_row
  lengths |= {ENTRY + n: s.shape[1] for n, s in (extras or {}).items()}
  return grain.experimental.FirstFitPackIterDataset(
      samples, length_struct=lengths,
      padding_struct={**dict.fromkeys(lengths), "visual": -1},
      num_packing_bins=OPEN_ROWS if config.pack else 1,
      max_sequences_per_bin=None if config.pack else 1,
      # Bins of one pack differ in how full they are, and would otherwise come
      # in that order every time. The parent's order is seeded already.
      shuffle_bins=config.pack, seed=0)


def row(packed: dict[str, Any], tokens_per_image: int, images_per_row: int,
        extras: Extras | None = None) -> dict[str, Any]:
  """A packed row with the fields of a batch (see `pipeline`), without B.

  A sample counts its visual tokens from its own first image; a row's bank is
  f[N*T + X, D]: the images of the row, then the special tokens. So an image's
  tokens move by the slots that earlier samples take, and specials to the end.
  """
  visual = packed["visual"]
  segments = packed["tokens_segment_ids"]
  image_segments = packed["images_segment_ids"]
  # First slot of each sample; a sample without images is never looked up.
  first = np.zeros(int(segments.max(initial=0)) + 1, np.int32)
  taken, slots = np.unique(image_segments, return_index=True)
  first[taken] = slots
  index = visual + first[segments] * tokens_per_image
  index = np.where(visual >= 0, index,
                   images_per_row * tokens_per_image - 2 - visual)
  return {
      "tokens": packed["tokens"],
      "targets": packed["targets"],
      "loss_weights": packed["loss_weights"],
      "positions": packed["tokens_positions"],
      "segment_ids": segments,
      "images": packed["images"],
      "image_segment_ids": image_segments,
      "image_boxes": packed["boxes"],
      "visual_index": np.where(visual == -1, -1, index).astype(np.int32),
      "extras": {name: packed[ENTRY + name] for name in extras or {}},
  }
