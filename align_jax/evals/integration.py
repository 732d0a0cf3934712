"""How visual tokens and text mix inside a run's language model."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from align_jax.data.example import Example
from align_jax.errors import InputError
from align_jax.evals import alignment
from align_jax.evals.prompts import bucket, pad


def integration(run: Any, examples: Sequence[Example],
                rows: int = 16) -> float | None:
  """MIR (2410.07167) of a run: visual tokens against the text beside them.

  Args:
    run: what is looked into.
    examples: of one image each; their turns are the text.
    rows: examples at a time.

  Returns:
    `alignment.mir`; None for a connector that looks again between layers,
    whose states are not those of one pass.

  Raises:
    InputError: an example of another number of images.
  """
  if run.model.connector.feedback_layer:
    return None
  renderer, rendered, looks = run.renderer, [], []
  for example in examples:
    images, places = run.reader.places(
        example["images"], renderer.tokens_per_image, renderer.frame)
    pixels, boxes = run.reader.slots(images)
    if len(pixels) != 1:
      raise InputError(f"integration is of examples with one image in one "
                       f"slot; {example['origin']} takes {len(pixels)}")
    rendered.append(renderer(example, places))
    looks.append((pixels, boxes, run.extras(example)))
  length = bucket(max(map(len, rendered)))
  count = run.parts.tokens_per_image
  parts: list[list[np.ndarray]] = [[], []]
  for at in range(0, len(rendered), rows):
    some = rendered[at:at + rows]
    shown = looks[at:at + rows]
    more = rows - len(some)
    fill = lambda arrays, n=more: np.stack([*arrays, *[arrays[0]] * n])
    live = pad([np.ones(len(r), np.int32) for r in some], rows, length)
    visual = pad([r.visual for r in some], rows, length, fill=-1)
    # Special tokens stand behind the image's in a row's bank.
    index = np.where(visual < -1, count - 2 - visual, visual)
    states = np.asarray(_states(run.model, run.params, {
        "tokens": pad([r.tokens for r in some], rows, length),
        "visual_index": index, "segment_ids": live,
        "positions": np.arange(length) * live,
        "images": fill([p for p, _, _ in shown]),
        "image_boxes": fill([b for _, b, _ in shown]),
        "image_segment_ids": np.ones((rows, 1), np.int32),
        "extras": {name: fill([e[name][None] for *_, e in shown])
                   for name in shown[0][2]}}), np.float32)
    for kind, found in zip(((visual >= 0), (visual == -1)), parts):
      found.append(states[1:, kind & (live > 0)])
  return alignment.mir(*(np.concatenate(p, axis=1) for p in parts))


@functools.partial(jax.jit, static_argnums=0)
def _states(model: nn.Module, params: Any,
            batch: dict[str, Any]) -> jax.Array:
  """f[layers+1,B,L,D] of rows of one sample each."""
  def run(model: nn.Module) -> jax.Array:
    return model.states(batch, model.encode_images(batch))

  return nn.apply(run, model)({"params": params})
