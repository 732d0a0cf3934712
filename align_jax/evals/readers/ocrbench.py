"""OCRBench (v1), 1,000 questions.

  OCRBench/OCRBench.json: [{"dataset_name": "IIIT5K", "type": "Regular Text
      Recognition", "id": 0, "image_path": "IIIT5K/test/5002_1.png",
      "question": "what is written in the image?", "answers": ["CENTRE"] or
      "CENTRE"}, ...]
  OCRBench_Images/IIIT5K/test/5002_1.png

Source of the layout: Yuliang-Liu/MultimodalOCR: OCRBench/example.py.
"""

from align_jax.data.tables import json_rows
from align_jax.evals.readers.benchmark import Benchmark


class OcrBench(Benchmark):
  """An item's type is its question type."""
  name, scorer, max_new_tokens = "ocrbench", "ocrbench", 100

  def read(self) -> None:
    for number, row in enumerate(
        json_rows(self.folder / "OCRBench" / "OCRBench.json")):
      given = row.get("answers", str, list)
      answers = (given,) if isinstance(given, str) else row.texts("answers")
      image = self.path(row, "OCRBench_Images", row.text("image_path"))
      self.add(row, number, row.text("question"), answers[0], [image],
               kind=row.text("type"), answers=answers,
               facts={"dataset": row.text("dataset_name")})
