"""Readers of published layouts, on files written by hand from them.

The fixtures lie in fixtures/, a folder a data set; images are put where the
records name them, and parquet files are made of rows with the hub's columns.
"""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from align_jax.errors import InputError
from align_jax.evals.scorers import SCORERS
from align_jax.evals.tasks import TASKS, Item, open_task

FIXTURES = Path(__file__).parent / "fixtures"


def png(color: tuple[int, int, int] = (255, 0, 0)) -> bytes:
  out = io.BytesIO()
  Image.new("RGB", (2, 2), color).save(out, "PNG")
  return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
  """A fixture's copy, with images at the given places."""
  def make(name: str, *images: str) -> Path:
    home = tmp_path / name
    if (FIXTURES / name).is_dir():
      shutil.copytree(FIXTURES / name, home)
    for number, image in enumerate(images):
      (home / image).parent.mkdir(parents=True, exist_ok=True)
      (home / image).write_bytes(png((number, 0, 0)))
    return home

  return make


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


def picture(color: tuple[int, int, int] = (9, 0, 0)) -> dict[str, Any]:
  return {"bytes": png(color), "path": None}


# Task -> fixture, options, images that its records name.
PLAIN = {
    "docvqa": ("docvqa", {}, ["documents/pybv0228_81.png",
                              "documents/nkbl0226_1.png"]),
    "infovqa": ("infovqa", {}, ["images/38899.jpeg"]),
    "chartqa": ("chartqa", {}, ["test/png/41699051005347.png",
                                "test/png/two_col_1.png"]),
    "textvqa": ("textvqa", {}, ["train_images/003a8ae2ef43b901.jpg"]),
    "pope": ("pope", {}, ["val2014/COCO_val2014_000000310196.jpg"]),
    "gqa": ("gqa", {}, ["images/n161313.jpg"]),
    "vqav2": ("vqav2", {}, ["val2014/COCO_val2014_000000262148.jpg"]),
    "vizwiz": ("vizwiz", {}, ["val/VizWiz_val_00000000.jpg"]),
    "coco_captions": ("coco", {}, ["val2014/COCO_val2014_000000391895.jpg"]),
    "ocrbench": ("ocrbench", {}, ["OCRBench_Images/IIIT5K/test/5002_1.png",
                                  "OCRBench_Images/HME100k/1.jpg"]),
    "mmvp": ("mmvp", {}, [f"MMVP Images/{n}.jpg" for n in (1, 2, 3)]),
    "mmlu": ("mmlu", {"shots": 2}, []),
    "seedbench": ("seedbench", {}, ["SEED-Bench-image/1454426_2591111986"]),
    "mmvet": ("mmvet", {}, ["images/v1_0.png", "images/v1_1.png"]),
    "scienceqa_img": ("scienceqa", {}, ["images/test/5/image.png"]),
    "mmbench": ("mmbench", {}, []),
    "sam": ("sam", {"dataset": "AESOP"},
            [f"AESOP/0_{n}.jpg" for n in range(3)]),
    "demon": ("demon", {}, ["core/images/0.jpg", "core/images/1.jpg"]),
    "deepform": ("downstream", {}, ["imgs/a.png"]),
    "klc": ("downstream", {}, ["imgs/a.png"]),
    "wtq": ("downstream", {}, ["imgs/a.png"]),
    "tabfact": ("downstream", {}, ["imgs/a.png"]),
}


def opened(folder: Callable[..., Path], task: str, **options: Any) -> Any:
  name, own, images = PLAIN[task]
  return open_task(task, {"folder": str(folder(name, *images))} | own | options)


@pytest.mark.parametrize("task", sorted(PLAIN))
def test_a_reader_is_a_task(folder, task: str):
  made = opened(folder, task)
  scorer = SCORERS.get(made.scorer)()
  assert made.items and made.max_new_tokens >= 0
  assert made.scoring == "generate" or made.answers
  for n, item in enumerate(made.items):
    assert item.index == n and 0 <= item.image < made.n_images
    example = made.example(item)
    asked = example["conversation"][0]["content"]
    images = made.image(item.image)
    assert example["images"] == images
    assert asked.count("<image>") == len(images)
    for image in images:
      data = image() if callable(image) else image
      Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    if made.answers:
      assert item.answer in made.answers
  truths = [i.answer for i in made.items]
  got = scorer.total(truths, made.items)
  assert got[scorer.headline] > 0 or made.name == "wtq" or len(truths) == 1
  json.dumps([dict(i.facts) for i in made.items])


def first(task: Any) -> Item:
  return task.items[0]


def test_docvqa(folder):
  task = opened(folder, "docvqa")
  assert [i.id for i in task.items] == ["docvqa/49153", "docvqa/24580"]
  assert first(task).answers == ("0.28", "0.28 %")
  assert first(task).type == "figure/diagram"
  assert first(task).question.startswith("What is the 'actual' value per 1000")
  assert [a for _, a in task.training] == ["rjrt"]
  assert task.training[0][0] == task.items[1].question
  assert task.example(first(task))["origin"].endswith(
      "val_v1.0_withQT.json:3")


def test_infovqa(folder):
  task = opened(folder, "infovqa")
  assert first(task).answer == "pinterest"
  assert first(task).type == "single span" and not task.training


def test_chartqa(folder):
  task = opened(folder, "chartqa")
  assert [i.type for i in task.items] == ["human", "human", "augmented"]
  assert task.n_images == 2 and len(task.training) == 1


def test_textvqa(folder):
  item = first(opened(folder, "textvqa"))
  assert len(item.answers) == 10 and item.answer == "dakota"
  assert item.question.startswith("What is the brand of this camera?\n")


def test_pope(folder):
  task = opened(folder, "pope")
  assert len(task.items) == 6 and task.n_images == 1
  assert {i.type for i in task.items} == {"random", "popular", "adversarial"}
  assert task.exchanged(0) is None  # there is no other image


def test_vqav2(folder):
  task = opened(folder, "vqav2")
  assert first(task).answers == ("down", "down", "at table")
  assert [i.type for i in task.items] == ["other", "yes/no"]


def test_coco_keeps_all_references(folder):
  assert first(opened(folder, "coco_captions")).answers == (
      "A man with a red helmet on a small moped on a dirt road.",
      "Man riding a motor bike on a dirt road.")


def test_ocrbench(folder):
  task = opened(folder, "ocrbench")
  assert task.items[1].answers == ("x ^ { 2 }",)
  assert task.items[1].facts["dataset"] == "HME100k"


def test_mmvp_pairs(folder):
  task = opened(folder, "mmvp")
  assert [i.facts["group"] for i in task.items] == ["0", "0", "1"]
  assert [i.answer for i in task.items] == ["A", "B", "A"]
  assert first(task).options == ("Open", "Closed")
  assert "A. Open\nB. Closed" in first(task).question


def test_mmlu_asks_with_solved_questions(folder):
  task = opened(folder, "mmlu")
  assert task.scoring == "likelihood" and task.image(0) == []
  asked = task.items[1].question
  assert asked.startswith("The following are multiple choice questions (with "
                          "answers) about  abstract algebra.\n\nFind all c")
  assert "A. 0\nB. 1\nC. 2\nD. 3\nAnswer: B\n\n" in asked
  assert asked.endswith("D. 120\nAnswer:")
  assert first(task).type == "abstract_algebra"
  assert task.exchanged(0) is None
  with pytest.raises(InputError, match="2 questions for 5 shots"):
    open_task("mmlu", {"folder": str(task.folder)})


def test_seedbench_says_what_it_leaves_out(folder, caplog):
  task = opened(folder, "seedbench")
  assert task.left_out == 1 and "1 questions about videos" in caplog.text
  assert first(task).type == "Instances Counting"


def test_mmvet(folder):
  task = opened(folder, "mmvet")
  assert first(task).id == "mmvet/v1_0" and first(task).type == "math+ocr"
  assert "NOT MM-Vet's score" in SCORERS.get(task.scorer)().protocol


def test_scienceqa_takes_questions_with_an_image(folder):
  task = opened(folder, "scienceqa_img")
  assert [i.id for i in task.items] == ["scienceqa_img/5"]
  assert first(task).answer == "B"
  assert [a for _, a in task.training] == ["A"]


def test_mmbench_is_asked_in_a_circle(folder):
  task = opened(folder, "mmbench")
  groups = [(i.facts["group"], i.facts["rotation"], i.answer, i.options)
            for i in task.items]
  assert groups[:2] == [("241", 0, "B", ("Warm?", "Cold?")),
                        ("241", 1, "A", ("Cold?", "Warm?"))]
  assert [g[2] for g in groups[2:]] == ["C", "B", "A", "D"]
  for item in task.items:
    right = item.options["ABCD".index(item.answer)]
    assert right == {"241": "Cold?", "252": "blue"}[item.facts["group"]]
  assert first(task).question.startswith("The passage.\nIdentify")
  assert "nan" not in task.items[2].question
  plain = open_task("mmbench", {"folder": str(task.folder), "circular": False})
  assert len(plain.items) == 2 and plain.scorer == "infer"


def test_mmbench_takes_rotations_that_are_there(folder):
  task = opened(folder, "mmbench", file="turned.tsv")
  assert [(i.facts["rotation"], i.answer) for i in task.items] == [
      (0, "B"), (1, "A")]
  assert task.n_images == 1  # the second line names the first one's image


def test_sams_sets(folder):
  task = opened(folder, "sam")
  assert task.name == "sam_aesop" and task.scorer == "sam"
  assert first(task).question.startswith("How does it end? {image#1}Caption")
  asked = task.example(first(task))["conversation"][0]["content"]
  assert asked.startswith("<image><image><image>\nHow does")
  with pytest.raises(InputError, match="did you mean 'VIST'"):
    open_task("sam", {"folder": str(task.folder), "dataset": "VITS"})


@pytest.mark.parametrize("name, images, fits", [
    ("VIST", 5, True), ("VIST", 3, False), ("Conceptual", 5, True),
    ("Conceptual", 4, False), ("AESOP", 2, False), ("DM800K", 2, True),
    ("Animal", 7, True), ("Vehicle", 1, True)])
def test_sams_sets_have_their_numbers_of_images(folder, name, images, fits):
  """As published: five a story of VIST and a group of Conceptual."""
  names = [f"12_{n}.jpg" for n in range(images)]
  home = folder("sets", *(f"{name}/{image}" for image in names))
  (home / name / "annotations.json").write_text(json.dumps([{
      "id": 12, "img_list": names, "instruction": "What do they share?",
      "output": "A lake."}]))
  if not fits:
    with pytest.raises(InputError, match=f"{images} images, not "):
      open_task("sam", {"folder": str(home), "dataset": name})
    return
  task = open_task("sam", {"folder": str(home), "dataset": name})
  assert [p.name for p in task.example(first(task))["images"]] == names
  assert first(task).answer == "A lake."


def test_demon_puts_images_where_the_context_has_them(folder):
  task = opened(folder, "demon")
  assert first(task).question == (
      "Conclude it with the last image. <image>Caption#1: Jenny sat.<image>"
      "Caption#2:")
  assert first(task).answer == "She stood up." and task.scorer == "rouge_l"


def test_demon_choices(folder):
  home = folder("demon_choice", "core/images/0.jpg", "core/images/1.jpg")
  task = open_task("demon", {"folder": str(home)})
  assert task.scorer == "demon_choice" and first(task).answer == "Bob"
  assert first(task).closed == ("Ann", "Bob")
  # The list is shown, although the instruction speaks of it already.
  assert first(task).question.endswith(
      "Who wrote it? <image> Choice list:['Ann', 'Bob']. Your answer is:")


@pytest.mark.parametrize("dataset, context, answer, closed, scorer", [
    # As in the READMEs of OCR-VQA and of RecipeQA_VisualCloze.
    ("OCR-VQA", "{image#1}{table#2}Question: Who? Choice List:['not [1] the "
     "same', 'Sally M. Walker'] Your answer is:", "Sally M. Walker",
     ("not [1] the same", "Sally M. Walker"), "demon_choice"),
    ("RecipeQA_VisualCloze", "Series: UNKNOWN\nChoice List:['Image A: "
     "{image#1}', 'Image B: {image#2}']Your answer is:", "Image B", (),
     "demon_images")])
def test_demon_choices_that_stand_in_the_context(
    folder, dataset, context, answer, closed, scorer):
  home = folder("demon_choice", "core/images/0.jpg", "core/images/1.jpg")
  path = home / "core/core.json"
  whole = json.loads(path.read_text())
  whole["metadata"]["dataset"] = dataset
  row = whole["data"][0]
  row["response"], row["task_instance"]["context"] = answer, context
  del row["task_instance"]["choice_list"]
  path.write_text(json.dumps(whole))
  task = open_task("demon", {"folder": str(home)})
  assert (task.scorer, first(task).closed) == (scorer, closed)
  assert first(task).answer == answer
  assert first(task).question.count("<image>") == 2
  later = open_task("demon", {"folder": str(home), "interleave": False})
  assert "{image#1}" in first(later).question
  row["task_instance"]["context"] = "{image#1}{image#2}Who?"
  path.write_text(json.dumps(whole))
  if closed:
    with pytest.raises(InputError, match="no field 'choice_list', and no"):
      open_task("demon", {"folder": str(home)})


def test_forms_have_their_references(folder):
  task = opened(folder, "deepform")
  assert [i.facts["values"] for i in task.items] == [
      [["$1.00", "1.00", "1"]], []]
  assert [i.type for i in task.items] == ["gross_amount", "flight_to"]
  total = SCORERS.get("due_f1")().total
  assert total(["1.00", "None"], task.items)["f1"] == 1
  assert total(["1.00", "x"], task.items)["precision"] == 0.5


def test_klc(folder):
  assert first(opened(folder, "klc")).facts == {
      "document": "9f", "key": "charity_name", "values": [["Hope"]]}


def test_wtq_values_are_a_set(folder):
  item = first(opened(folder, "wtq"))
  assert item.answers == ("Ajax", "PSV")
  assert SCORERS.get("denotation")().scores(["PSV|Ajax"], [item]) == [1]


def test_tablevqa(tmp_path):
  for number, subset in enumerate(
      ("fintabnetqa", "vtabfact", "vwtq", "vwtq_syn")):
    write_parquet(tmp_path / "data" / f"{subset}-00000-of-00001.parquet", [
        {"qa_id": f"{subset}_{n}", "image": picture((number, n, 0)),
         "question": "q?", "gt": "1", "text_html_table": "<table>"}
        for n in range(3)])
  task = open_task("tablevqa", {"folder": str(tmp_path)})
  assert len(task.items) == task.n_images == 12
  assert Image.open(io.BytesIO(task.image(4)[0]())).getpixel((0, 0)) == (
      3, 1, 0)  # vwtq_syn comes second
  partners = task.exchanged(0)
  assert sorted(partners) == list(range(12))
  assert all(a != b for a, b in enumerate(partners))
  assert partners == task.exchanged(0) != task.exchanged(1)


def test_vcr(tmp_path):
  write_parquet(tmp_path / "data/test-00000-of-00001.parquet", [
      {"question_id": 3, "image": picture(), "stacked_image": picture(),
       "caption": "c", "crossed_text": ["the old", "in 1912"]}])
  item = first(open_task("vcr", {"folder": str(tmp_path)}))
  assert item.answers == ("the old", "in 1912")
  assert SCORERS.get("vcr")().scores([item.answer], [item]) == [1]


def test_mmmu(tmp_path):
  empty = {f"image_{n}": None for n in range(1, 8)}
  write_parquet(
      tmp_path / "Art/validation-00000-of-00001.parquet", [
          {"id": "validation_Art_1", "question": "<image 1> Which?",
           "options": "['a', '<image 2>', \"it's\"]", "answer": "B",
           "question_type": "multiple-choice", "subfield": "s"} | empty
          | {"image_1": picture((1, 0, 0)), "image_2": picture((2, 0, 0))},
          {"id": "validation_Art_2", "question": "How many in <image 1>?",
           "options": "[]", "answer": "['12', 'twelve']",
           "question_type": "open", "subfield": "s"} | empty
          | {"image_1": picture((3, 0, 0))}])
  task = open_task("mmmu", {"folder": str(tmp_path)})
  choice, free = task.items
  assert choice.options == ("a", "<image 2>", "it's") and choice.type == "Art"
  assert choice.question.startswith("<image> Which?\nA. a\nB. <image>\nC.")
  shades = [Image.open(io.BytesIO(read())).getpixel((0, 0))[0]
            for read in task.image(choice.image)]
  assert shades == [1, 2]
  assert free.answers == ("12", "twelve") and not free.options
  score = SCORERS.get("mmmu")().scores
  assert score(["(B)", "it is 12"], task.items) == [1, 1]


def test_stanford_dogs(folder):
  from scipy.io import savemat
  names = [f"n0208562{n}-Breed_{n}/n0208562{n}_7.jpg" for n in range(5)]
  home = folder("dogs", *(f"Images/{n}" for n in names))
  cells = np.empty((5, 1), object)
  cells[:, 0] = names
  savemat(home / "test_list.mat", {
      "file_list": cells, "labels": np.arange(5)[:, None] + 1})
  task = open_task("stanford_dogs", {"folder": str(home)})
  assert len(task.items) == 5
  for number, item in enumerate(task.items):
    assert len(set(item.options)) == 4
    assert item.options["ABCD".index(item.answer)] == f"Breed {number}"
  again = open_task("stanford_dogs", {"folder": str(home)})
  assert [i.options for i in again.items] == [i.options for i in task.items]


def test_capsbench(tmp_path):
  write_parquet(tmp_path / "data/train-00000-of-00001.parquet", [
      {"image": picture(), "questions": [{"question": "Is it day?",
                                          "answer": "yes"}]}])
  task = open_task("capsbench", {"folder": str(tmp_path)})
  assert first(task).facts["questions"][0]["answer"] == "yes"
  assert task.scorer == "capsbench_unjudged"


def edited(home: Path, file: str, old: str, new: str) -> Path:
  path = home / file
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new, 1))
  return home


@pytest.mark.parametrize("task, file, old, new, said", [
    ("docvqa", "val_v1.0_withQT.json", '"answers": ["0.28", "0.28 %"]',
     '"answer": ["0.28"]',
     "val_v1.0_withQT.json:3: no field 'answers'; did you mean 'answer'"),
    ("docvqa", "val_v1.0_withQT.json", '["itc limited"]', '"itc"',
     "val_v1.0_withQT.json:8: field 'answers' is 'itc', not a list"),
    ("docvqa", "val_v1.0_withQT.json", '"data":', '"dta":',
     "no 'data'; did you mean 'dta'"),
    ("docvqa", "val_v1.0_withQT.json", "documents/pybv0228_81.png",
     "../secret.png", ":3: image '../secret.png' leaves"),
    ("docvqa", "val_v1.0_withQT.json", "pybv0228_81.png", "none.png",
     "does not exist (1 of 2"),
    ("docvqa", "val_v1.0_withQT.json", '"questionId": 24580',
     '"questionId": 49153', "1 ids stand for several"),
    ("chartqa", "test/test_human.json", '"14"}', '"14"} 5',
     "test_human.json:1: no valid JSON: expected , or ]"),
    ("pope", "coco_pope_popular.json", '"no"}', '"maybe"}',
     "coco_pope_popular.json:2: field 'label' is 'maybe', not one of yes, no"),
    ("pope", "coco_pope_random.json", '"label": "yes"}', '"label": "yes"',
     "coco_pope_random.json:2: no valid JSON"),
    ("gqa", "testdev_balanced_questions.json", '"answer": "man"',
     '"answer": ""', "questions.json:8: field 'answer' is empty"),
    ("vqav2", "v2_mscoco_val2014_annotations.json",
     '"question_id": 262148001}]', '"question_id": 3}]',
     "questions.json:4: no annotation has the question_id 262148001"),
    ("ocrbench", "OCRBench/OCRBench.json", '["CENTRE"]', "7",
     "OCRBench.json:1: field 'answers' is 7, not a text or a list"),
    ("mmvp", "Questions.csv", "(a) Yes (b) No,(a)", "(a) Yes,(a)",
     "Questions.csv:4: field 'Options' is '(a) Yes'"),
    ("mmvp", "Questions.csv", ",(b)", "", "Questions.csv:3: 3 values for"),
    ("mmlu", "test/abstract_algebra_test.csv", "6,C", "6,E",
     "abstract_algebra_test.csv:1: field 'answer' is 'E', not one of A, B"),
    ("seedbench", "SEED-Bench.json", '"data_type": "image"',
     '"data_type": "sound"', "SEED-Bench.json:2: field 'data_type'"),
    ("mmvet", "mm-vet.json", '["ocr", "math"]', "[]",
     "mm-vet.json:1: field 'capability' is []"),
    ("scienceqa_img", "problems.json", '"answer": 1,\n       "hint": "",',
     '"answer": 2, "hint": "",', "problems.json:11: field 'answer' is 2"),
    ("scienceqa_img", "pid_splits.json", '"5"', '"6"', "has no '6'"),
    ("mmbench", "MMBench_DEV_EN.tsv", "\tred\tgreen", "\t\tgreen",
     "MMBench_DEV_EN.tsv:3: the options are"),
    ("sam", "AESOP/annotations.json", ', "0_2.jpg"', "",
     "annotations.json:1: 2 images, not 3"),
    ("sam", "AESOP/annotations.json", '"output": "They', '"outputs": "They',
     "annotations.json:1: 'output' is None, not a text; did you mean"),
    ("demon", "core/core.json", '"task_instruction_id": 1',
     '"task_instruction_id": 2', "core.json:4: field 'task_instruction_id'"),
    ("demon", "core/core.json", "{image#2}", "{image#3}",
     "core.json:4: the context names the images [1, 3], and there are 2"),
    ("deepform", "test/DeepForm_test.jsonl", '"role": "user", "content": '
     '"<|image|>What', '"role": "user", "text": "<|image|>What',
     "DeepForm_test.jsonl:1, messages[0]: no field 'content'"),
    ("deepform", "meta/DeepForm/test/metadata.jsonl", "gross_amount?",
     "total?", "DeepForm_test.jsonl:1: the question 'What is the value for "
     "the total?' names none of advertiser"),
    ("wtq", "meta/WikiTableQuestions/test/document.jsonl", "which teams",
     "what teams", "metadata.jsonl:1: document.jsonl has no question"),
    ("tabfact", "test/TabFact_test.jsonl", '"True"', '"Yes"',
     "TabFact_test.jsonl:1: the answer is 'Yes'"),
    ("vizwiz", "val.json", '"answer": "dog"', '"answr": "dog"',
     "val.json:1, answers[1]: no field 'answer'; did you mean 'answr'"),
    ("textvqa", "TextVQA_0.5.1_val.json", '"question_id": 34602',
     '"question_id": null', "TextVQA_0.5.1_val.json:2: field 'question_id' is "
     "None, not a text"),
    ("coco_captions", "annotations/captions_val2014.json", '"id": 391895',
     '"id": "391895"', "captions_val2014.json:2: field 'id' is '391895', not "
     "a whole number"),
])
def test_faults_name_file_line_and_field(folder, task, file, old, new, said):
  name, own, images = PLAIN[task]
  home = edited(folder(name, *images), file, old, new)
  with pytest.raises(InputError) as error:
    open_task(task, {"folder": str(home)} | own)
  assert said in str(error.value), str(error.value)


def test_what_is_missing_is_named(tmp_path):
  with pytest.raises(InputError, match="folder .*none.* is no folder"):
    open_task("pope", {"folder": str(tmp_path / "none")})
  with pytest.raises(InputError, match="coco_pope_random.json: No such file"):
    open_task("pope", {"folder": str(tmp_path)})
  with pytest.raises(InputError, match=r"no \*\*/test-\*.parquet in"):
    open_task("vcr", {"folder": str(tmp_path)})
  with pytest.raises(InputError, match="task pope: .*unexpected.*'rot'"):
    open_task("pope", {"folder": "x", "rot": "x"})
  with pytest.raises(InputError, match="did you mean 'docvqa'"):
    open_task("docvpa", {})
  write_parquet(tmp_path / "data/test-0.parquet", [{"question_id": 1}])
  with pytest.raises(InputError, match="no column 'crossed_text'.*there are "
                     "question_id"):
    open_task("vcr", {"folder": str(tmp_path)})
  (tmp_path / "data/test-0.parquet").write_bytes(b"no parquet")
  with pytest.raises(InputError, match="no parquet file"):
    open_task("vcr", {"folder": str(tmp_path)})


def test_every_reader_is_registered_and_says_where_its_layout_is_from():
  import importlib
  import pkgutil

  from align_jax.evals import readers
  for module in pkgutil.iter_modules(readers.__path__):
    if module.name != "benchmark":
      text = importlib.import_module(
          f"align_jax.evals.readers.{module.name}").__doc__
      assert "ource" in text and "layout" in text, module.name
  covered = set(PLAIN) | {"easy_vqa", "tablevqa", "vcr", "mmmu",
                          "stanford_dogs", "capsbench"}
  read = {name for name in TASKS.names()
          if TASKS.get(name).__module__.startswith(readers.__name__)}
  assert read <= covered  # each has its test here
  for name in PLAIN:
    assert TASKS.get(name).scorer in SCORERS or name == "sam"
