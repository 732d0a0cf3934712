"""easy-VQA as a TensorFlow Datasets builder that needs no TensorFlow.

  Builder(data_dir=..., file_format="array_record").download_and_prepare()

writes one record an image, with all of its questions. Nothing is downloaded:
images and questions lie in the package `easy-vqa` (MIT).
"""

import io
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from align_jax.data.easy_vqa.facts import derive

SIZE = 64

MISSING = ("easy-VQA's images and questions come in the package easy-vqa, "
           "which is not installed: pip install 'align-jax[quickstart]'")


class Builder(tfds.core.GeneratorBasedBuilder):
  """4,000 training and 1,000 test images with 48,248 questions."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "One record an image."}

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features
    return self.dataset_info_from_configs(
        description="Questions on one coloured shape an image.",
        homepage="https://github.com/vzhou842/easy-VQA",
        features=features.FeaturesDict({
            "image": features.Image(shape=(SIZE, SIZE, 3),
                                    encoding_format="png"),
            "image_id": features.Scalar(np.int32),
            "file_name": features.Text(),
            "questions": features.Sequence(features.Text()),
            "answers": features.Sequence(features.Text()),
            # "" where the questions do not determine it.
            "shape": features.Text(),
            "color": features.Text(),
        }))

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    del dl_manager
    try:
      import easy_vqa
    except ImportError as error:
      raise ImportError(MISSING) from error
    return {
        "train": self._generate_examples(easy_vqa.get_train_questions(),
                                         easy_vqa.get_train_image_paths()),
        "test": self._generate_examples(easy_vqa.get_test_questions(),
                                        easy_vqa.get_test_image_paths()),
    }

  def _generate_examples(
      self, questions: tuple[list[str], list[str], list[int]],
      paths: dict[int, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    turns = defaultdict(list)
    for question, answer, image_id in zip(*questions):
      turns[image_id].append((question, answer))
    for image_id in sorted(paths):
      asked, answers = zip(*turns[image_id])
      shape, color = derive(asked, answers)
      path = Path(paths[image_id])
      yield image_id, {
          # The file as it is: an array would need TensorFlow to encode it.
          "image": io.BytesIO(path.read_bytes()),
          "image_id": image_id,
          "file_name": f"{path.parent.parent.name}/{path.name}",
          "questions": list(asked),
          "answers": list(answers),
          "shape": shape,
          "color": color,
      }
