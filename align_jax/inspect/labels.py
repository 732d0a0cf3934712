"""Looking at labels: words laid over patches, and what the words add up to."""

import collections
import itertools
import random
from pathlib import Path
from typing import Any

from align_jax.data import SOURCES
from align_jax.data.images import ImageReader
from align_jax.hub.pretrained import load_processor, read_spec
from align_jax.inspect.pictures import words_over_patches
from align_jax.labels.job import image_key
from align_jax.labels.known import foreground
from align_jax.labels.store import Labels, read_words


def inspect_labels(folder: str | Path, images: int = 6,
                   seed: int = 0) -> dict[str, Any]:
  """Writes FOLDER/inspect/image_*.png and gives what was found.

  Args:
    folder: of finished labels.
    images: how many to draw.
    seed: of their choice.

  Returns:
    `pictures`; `images` and `unlabelled_share`; `frequent`, [word, share of
    the labelled patches of which it is the first word]; and, where the source
    knows what its patches show, `check`: see `foreground`.

  Raises:
    InputError: no finished labels there.
  """
  labels = Labels(folder)
  words = read_words(labels.words_file)
  made = labels.manifest
  source = SOURCES.get(made["source"]["kind"])(
      **made["source"].get("options", {}))
  # As the labels' pictures were cropped: for the tower that learns from them.
  spec = made.get("crop_from") or read_spec(made["tower"], part="tower")
  reader = ImageReader(load_processor(spec), made["crop"]["image_size"])
  target = Path(folder) / "inspect"
  target.mkdir(exist_ok=True)
  for old in target.glob("image_*.png"):
    old.unlink()

  files = []
  order = random.Random(seed).sample(range(len(source)), len(source))
  # Examples without a picture, and pictures that are broken, have no labels.
  found = (image_key(source[index]["images"][0]) for index in order
           if source[index]["images"])
  chosen = itertools.islice(
      ((key, data) for key, data in found if key in labels), images)
  for at, (key, data) in enumerate(chosen):
    ids, scores = labels[key]
    files.append(target / f"image_{at:02}.png")
    files[-1].write_bytes(words_over_patches(
        reader(data)[0], [[words[i] for i in patch if i >= 0] or ["–"]
                          for patch in ids], scores.max(-1),
        "What each patch is said to show",
        f"by {made['tower']}, {made['how']}; the darker a cell, the larger "
        "the score of its first word"))

  first: collections.Counter[str] = collections.Counter()
  patches = 0
  for key in labels.keys():
    ids, _ = labels[key]
    patches += len(ids)
    first.update(words[i] for i in ids[:, 0] if i >= 0)
  total = max(sum(first.values()), 1)
  found = {"pictures": [str(f) for f in files], "images": len(labels),
           "unlabelled_share": 1 - sum(first.values()) / max(patches, 1),
           "frequent": [[w, c / total] for w, c in first.most_common(20)]}
  if hasattr(source, "truth"):
    found["check"] = foreground(labels, source, words)
  return found
