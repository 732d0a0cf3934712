"""Sets of pictures share exactly one thing, beside companions of its own."""

import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fontawesomefree")

from align_jax.data import SOURCES  # noqa: E402
from align_jax.data.icon_sets import (  # noqa: E402
  QUESTION,
  IconSets,
  kept_for_test,
)
from align_jax.data.linked_images.scenes import COLORS  # noqa: E402
from align_jax.errors import InputError  # noqa: E402
from align_jax.evals.tasks import open_task  # noqa: E402


@pytest.mark.parametrize("split", ("train", "test"))
@pytest.mark.parametrize("images", (2, 4))
def test_exactly_one_thing_is_in_every_picture(split, images):
  source = SOURCES.get("icon_sets")(split, images=images)
  for i in range(40):
    found = source.set(i)
    inside = [{name for name, _ in things} for things in found.pictures]
    assert len(inside) == images and all(len(x) == 9 for x in inside)
    assert set.intersection(*inside) == {found.shared}
    # Nothing but the shared thing is anywhere twice.
    assert sum(map(len, inside)) == len(set().union(*inside)) + images - 1
    for other in set().union(*inside) - {found.shared}:
      assert kept_for_test(found.shared, other) == (split == "test")
    assert len(set(found.choices)) == 4 and found.shared in found.choices
    assert set(found.choices) <= set().union(*inside)


def test_every_thing_is_shared_in_both_splits():
  for split in ("train", "test"):
    source = IconSets(split)
    assert len({source.set(i).shared for i in range(2500)}) > 230


def test_pictures_show_their_things_in_their_colours():
  source = IconSets("train", sets=5)
  for place in range(3):
    image = np.asarray(Image.open(io.BytesIO(source.image(3, place))), int)
    for at, (name, color) in enumerate(source.set(3).pictures[place]):
      row, col = divmod(at, 3)
      cell = image[32 * row:32 * row + 32, 32 * col:32 * col + 32]
      assert (np.abs(cell - COLORS[color]).sum(-1) < 12).any(), name
  assert source.image(3, 0) == IconSets("train", sets=9).image(3, 0)
  assert source.image(3, 0) != source.image(3, 1)


def test_samples():
  example = IconSets("train")[5]
  assert example["conversation"][0]["content"] == (
      "<image>\n<image>\n<image>\n" + QUESTION)
  assert [x.name for x in example["images"]] == [
      f"icon_sets/0/train/3/5/{i}/96" for i in range(3)]
  told = IconSets("text", "told", images=2)[5]
  found = IconSets("text", images=2).set(5)
  lines = told["conversation"][0]["content"].split("\n")
  assert told["images"] == [] and lines[2] == QUESTION
  assert lines[0].split() == [name for name, _ in found.pictures[0]]
  assert told["conversation"][1]["content"] == found.shared


def test_task_is_a_choice_of_four():
  task = open_task("icon_sets", dict(split="validation", sets=20,
                                     train_sets=30))
  assert len(task.items) == 60 and len(task.training) == 30
  assert all(item.answer in item.closed and len(item.closed) == 4
             for item in task.items)
  assert [len(task.image(i)) for i in (3, 23, 43)] == [2, 3, 4]
  for at, other in enumerate(task.exchanged(1)):
    assert at != other and at // 20 == other // 20
  for item in task.items[::9]:
    assert task.example(item)["conversation"][1]["content"] == item.answer
  assert task.measures(None) == {"chance": 0.25}


def test_bad_options():
  with pytest.raises(InputError) as error:
    IconSets("tests", "image", sets=0, images=5, size=3)
  for part in ("did you mean 'test'", "did you mean 'images'", "sets is 0",
               "images is 5", "size is 3"):
    assert part in str(error.value)
