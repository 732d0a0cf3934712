"""easy-VQA as a task: the official test split and its partners."""

from collections import Counter

import pytest

from align_jax.data.easy_vqa.facts import COLORS, SHAPES
from align_jax.data.example import PLACEHOLDER
from align_jax.evals import tasks

pytest.importorskip("easy_vqa")


@pytest.fixture(scope="module")
def task():
  return tasks.TASKS.get("easy_vqa")()


def test_official_counts(task):
  assert len(task.items) == 9673
  assert task.n_images == 1000
  assert len(task.training) == 38575
  assert len({i.id for i in task.items}) == 9673
  assert task.items[0].id == "easy_vqa/test/0/0"
  answers = Counter(i.answer for i in task.items)
  assert set(answers) == set(task.answers)
  assert Counter(i.type for i in task.items) == {
      "yes/no": answers["yes"] + answers["no"],
      "shape": sum(answers[s] for s in SHAPES),
      "color": sum(answers[c] for c in COLORS)}


def test_items_ask_what_they_say(task):
  for item in task.items[::997]:
    example = task.example(item)
    assert example["id"] == item.id
    user, assistant = example["conversation"]
    assert user["content"] == f"{PLACEHOLDER}\n{item.question}"
    assert assistant["content"] == item.answer
    assert task.image(item.image) == example["images"][0]()


def test_exchanged_images_show_another_shape_and_colour(task):
  partners = task.exchanged(0)
  assert len(partners) == 1000
  for image, partner in enumerate(partners):
    for kind in ("shape", "color"):
      mine, other = task.facts(image)[kind], task.facts(partner)[kind]
      assert mine != other or not mine


def test_answers_differ_once_images_are_exchanged(task):
  # Where facts are known, a question that names the shape or the colour of
  # the image it belongs to can be answered anew for the partner.
  partners = task.exchanged(0)
  for item in task.items[::41]:
    mine, other = task.facts(item.image), task.facts(partners[item.image])
    if item.type == "color" and other["color"]:
      assert other["color"] != item.answer
    if item.type == "shape" and other["shape"]:
      assert other["shape"] != item.answer
    assert mine is not other


def test_sample_is_fixed_and_takes_whole_images(task):
  items = tasks.sample(task.items, 500, seed=0)
  assert len(items) == 500
  assert items == tasks.sample(task.items, 500, seed=0)
  assert items != tasks.sample(task.items, 500, seed=1)
  images = {i.image for i in items}
  whole = [i for i in task.items if i.image in images]
  assert 500 <= len(whole) < 520  # only the last image is cut
  assert tasks.sample(task.items, 0) == list(task.items)


def test_probe_images(task):
  train, test, names = task.probe_images()
  assert len(train) == 2000 and len(test) == 1000
  assert set(names) == {"shape", "color"}
  assert train[0][:4] == b"\x89PNG"
