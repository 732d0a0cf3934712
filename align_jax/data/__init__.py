"""Files -> examples -> packed rows -> sharded batches.

  source    a file or a data set as examples            llava.py, easy_vqa/,
            several images a record                     image_lists.py demon.py
            shards and hub files        webdataset.py parquet_chats.py, ...
            seeded views of another source's images     views.py
            another source's words, to be copied        recall.py
            small worlds of which everything is known   icon_scenes.py
                                    icon_sets.py documents/ english.py
  render    an example as tokens with a loss mask       render.py
  images    an image as uint8 pixels with a box         images.py
            several tiles of an image       tiling.py anyres.py coverage.py
                                            canvas.py
  features  what a frozen tower gives for an image      features.py
  rows      several samples in one row of fixed size    rows.py
  pipeline  rows as batches, in a reproducible order    pipeline.py
  batch     batches on the devices                      batch.py
"""

from align_jax.data.example import PLACEHOLDER, BadSample, Example, Source
from align_jax.registry import Registry

SOURCES = Registry("source", {
    "bigdocs": "align_jax.data.parquet_chats:BigDocs",
    "demon": "align_jax.data.demon:Demon",
    "doc_downstream": "align_jax.data.doc_downstream:DocDownstream",
    "documents": "align_jax.data.documents.source:Documents",
    "easy_vqa": "align_jax.data.easy_vqa.source:EasyVQA",
    "english": "align_jax.data.english:English",
    "image_lists": "align_jax.data.image_lists:ImageLists",
    "icon_scenes": "align_jax.data.icon_scenes:IconScenes",
    "icon_sets": "align_jax.data.icon_sets:IconSets",
    "labelled": "align_jax.data.labelled:Labelled",
    "linked_images": "align_jax.data.linked_images.source:LinkedImages",
    "llava": "align_jax.data.llava:Llava",
    "llava_558k": "align_jax.data.llava_558k:Llava558K",
    "llava_next": "align_jax.data.parquet_chats:LlavaNext",
    "mantis": "align_jax.data.parquet_chats:Mantis",
    "recall": "align_jax.data.recall:Recall",
    "vcr_wiki": "align_jax.data.vcr_wiki:VcrWiki",
    "views": "align_jax.data.views:Views",
    "webdataset": "align_jax.data.webdataset:WebDataset",
})

TILINGS = Registry("tiling", {
    "anyres": "align_jax.data.anyres:Anyres",
    "canvas": "align_jax.data.canvas:Canvas",
    "coverage": "align_jax.data.coverage:Coverage",
})

__all__ = ["PLACEHOLDER", "SOURCES", "TILINGS", "BadSample", "Example",
           "Source"]
