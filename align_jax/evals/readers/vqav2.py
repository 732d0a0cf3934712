"""VQAv2, val2014.

  v2_OpenEnded_mscoco_val2014_questions.json: {"questions": [{"image_id":
      262148, "question": "...", "question_id": 262148000}, ...]}
  v2_mscoco_val2014_annotations.json: {"annotations": [{"question_id": ...,
      "answers": [{"answer": "net", "answer_confidence": "maybe",
      "answer_id": 1}, ... ten], "multiple_choice_answer": "net",
      "question_type": "what is", "answer_type": "other"}, ...]}
  val2014/COCO_val2014_000000262148.jpg

Source of the layout: GT-Vision-Lab/VQA: README.md and
PythonHelperTools/vqaTools/vqa.py. LLaVA and SEA report test-dev, whose
answers only the server has; val is what can be scored here.
"""

from align_jax.data.tables import Row, json_rows
from align_jax.evals.readers.benchmark import SHORT, Benchmark


class VqaV2(Benchmark):
  """An item's type is its answer type: yes/no, number or other."""
  name, scorer, max_new_tokens = "vqav2", "vqa_official", 8

  def read(self) -> None:
    answers = {r.text("question_id"): r for r in self._answers("val2014")}
    for row in self._questions("val2014"):
      key = row.text("question_id")
      if key not in answers:
        raise row.fault(f"no annotation has the question_id {key}")
      truth = answers[key]
      image = f"COCO_val2014_{row.get('image_id', int):012d}.jpg"
      self.add(row, key, row.text("question") + SHORT,
               truth.text("multiple_choice_answer"),
               [self.path(row, "val2014", image)],
               kind=truth.text("answer_type"),
               answers=tuple(a.text("answer") for a in truth.rows("answers")))
    if (self.folder / "v2_mscoco_train2014_annotations.json").is_file():
      common = {r.text("question_id"): r.text("multiple_choice_answer")
                for r in self._answers("train2014")}
      self.training = [
          (r.text("question") + SHORT, common[r.text("question_id")])
          for r in self._questions("train2014")]

  def _questions(self, split: str) -> list[Row]:
    return list(json_rows(
        self.folder / f"v2_OpenEnded_mscoco_{split}_questions.json",
        "questions"))

  def _answers(self, split: str) -> list[Row]:
    return list(json_rows(
        self.folder / f"v2_mscoco_{split}_annotations.json", "annotations"))
