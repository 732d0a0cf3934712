"""Files -> examples -> packed rows -> sharded batches.

  source    a file or a data set as examples            llava.py, easy_vqa/
            seeded views of another source's images     views.py
  render    an example as tokens with a loss mask       render.py
  images    an image as uint8 pixels with a box         images.py
  rows      several samples in one row of fixed size    rows.py
  pipeline  rows as batches, in a reproducible order    pipeline.py
  batch     batches on the devices                      batch.py
"""

from align_jax.data.example import PLACEHOLDER, BadSample, Example, Source
from align_jax.registry import Registry

SOURCES = Registry("source", {
    "easy_vqa": "align_jax.data.easy_vqa.source:EasyVQA",
    "llava": "align_jax.data.llava:Llava",
    "views": "align_jax.data.views:Views",
})

__all__ = ["PLACEHOLDER", "SOURCES", "BadSample", "Example", "Source"]
