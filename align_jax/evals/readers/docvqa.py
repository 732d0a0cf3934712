"""DocVQA and InfographicVQA as the RRC site gives them.

  {"dataset_name": "docvqa", "dataset_split": "val", ...,
   "data": [{"questionId": 49153, "question": "...", "question_types": [...],
             "image": "documents/pybv0228_81.png", "docId": 14465,
             "answers": ["0.28", "0.28 %"], "data_split": "val"}, ...]}

InfographicVQA names its image `image_local_name`, below `images`, and has
`answer_type` in place of `question_types`. Sources of the layout: the files
val_v1.0_withQT.json and infographicsVQA_val_v1.0_withQT.json of
rrc.cvc.uab.es (challenge 17, tasks 1 and 3), as QwenLM/Qwen-VL reads them:
eval_mm/EVALUATION.md and eval_mm/infographicsvqa_eval.py. Test answers are on
the server alone, so that papers, AlignVLM among them, report the val split.
"""

from align_jax.data.tables import Row, json_rows
from align_jax.evals.readers.benchmark import SHORT, Benchmark


class DocVqa(Benchmark):
  """DocVQA, val; scored by ANLS."""
  name, scorer, max_new_tokens = "docvqa", "anls", 32
  file, train = "val_v1.0_withQT.json", "train_v1.0_withQT.json"
  types = "question_types"

  def read(self) -> None:
    for row in json_rows(self.folder / self.file, "data"):
      answers = row.texts("answers")
      kinds = row.fields.get(self.types) or ["all"]
      self.add(row, row.text("questionId"), row.text("question") + SHORT,
               answers[0], [self.picture(row)], kind=str(kinds[0]),
               answers=answers)
    train = self.folder / self.train
    if train.is_file():
      self.training = [(row.text("question") + SHORT, answer)
                       for row in json_rows(train, "data")
                       for answer in row.texts("answers")[:1]]

  def picture(self, row: Row):
    return self.path(row, row.text("image"))


class InfoVqa(DocVqa):
  """InfographicVQA, val; scored by ANLS."""
  name = "infovqa"
  file = "infographicsVQA_val_v1.0_withQT.json"
  train = "infographicsVQA_train_v1.0.json"
  types = "answer_type"

  def picture(self, row: Row):
    return self.path(row, "images", row.text("image_local_name"))
