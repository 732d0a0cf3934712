"""MIR of a run: states of its decoder, one sample after the other."""

from types import SimpleNamespace

import numpy as np
import pytest

from align_jax.api import load_run, question
from align_jax.errors import InputError
from align_jax.evals import alignment
from align_jax.evals.integration import integration
from tests.data.samples import png
from tests.evals import tiny_run

SAID = ("red", "the blue circle is not present", "yes")


@pytest.fixture(scope="module")
def run():
  return load_run(tiny_run.shared())


def asked(i: int, count: int = 1) -> dict:
  example = question("what is the color?", [png(90 * i)] * count)
  return example | {"conversation": [
      *example["conversation"], {"role": "assistant", "content": SAID[i]}]}


def test_it_is_of_every_sample_read_alone(run):
  examples = [asked(i) for i in range(3)]
  visual, text = [], []
  for example in examples:
    rendered = run.renderer(example, None)
    pixels, boxes = run.read(example["images"])
    n = len(rendered)
    batch = {"tokens": rendered.tokens[None],
             "segment_ids": np.ones((1, n), int),
             "visual_index": rendered.visual[None],
             "positions": np.arange(n)[None], "images": pixels[None],
             "image_boxes": boxes[None],
             "image_segment_ids": np.ones((1, 1), int)}
    made = run.model.apply({"params": run.params}, batch,
                           method="encode_images")
    states = np.asarray(run.model.apply(
        {"params": run.params}, batch, made, method="states"))[:, 0]
    visual.append(states[1:, rendered.visual >= 0])
    text.append(states[1:, rendered.visual < 0])
  want = alignment.mir(*(np.concatenate(x, axis=1) for x in (visual, text)))
  assert integration(run, examples, rows=2) == pytest.approx(want, rel=1e-4)
  other = integration(run, [asked(i) for i in (0, 0, 1)], rows=2)
  assert other != pytest.approx(want, rel=1e-3)


def test_what_it_is_not_for(run):
  with pytest.raises(InputError, match="one image.*takes 2"):
    integration(run, [asked(0, 2)])
  again = SimpleNamespace(model=SimpleNamespace(
      connector=SimpleNamespace(feedback_layer=2)))
  assert integration(again, [asked(0)]) is None
