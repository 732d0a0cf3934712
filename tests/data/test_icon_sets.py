"""Sets of pictures share exactly one thing, beside companions of its own."""

import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fontawesomefree")

from align_jax.data import SOURCES  # noqa: E402
from align_jax.data.icon_sets import (  # noqa: E402
  ASKS,
  QUESTION,
  IconSets,
  ending,
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
      f"icon_sets/0/train/3/5/{i}/96/9/0" for i in range(3)]
  told = IconSets("text", "told", images=2)[5]
  found = IconSets("text", images=2).set(5)
  lines = told["conversation"][0]["content"].split("\n")
  assert told["images"] == [] and lines[2] == QUESTION
  assert lines[0].split() == [
      "here:", *(name for name, _ in found.pictures[0])]
  assert told["conversation"][1]["content"] == found.shared


def test_sets_of_other_sizes_are_other_sets():
  """Or three sizes would be one sample, counted three times."""
  shared = [[IconSets("test", images=n).set(i).shared for i in range(40)]
            for n in (2, 3)]
  assert sum(a == b for a, b in zip(*shared)) < 5


def test_a_smaller_world_leaves_cells_empty():
  source = IconSets("test", images=5, things=6, words=112, sets=3)
  seen = {n for i in range(200) for p in source.set(i).pictures
          for n, _ in p}
  assert len(seen) == 112
  found = source.set(2)
  assert [len(set(cells)) for cells in found.cells] == [6] * 5
  image = np.asarray(Image.open(io.BytesIO(source.image(2, 4))), int)
  for cell in range(9):
    row, col = divmod(cell, 3)
    part = image[32 * row:32 * row + 32, 32 * col:32 * col + 32]
    assert (np.ptp(part, axis=(0, 1)).max() > 0) == (cell in found.cells[4])
  with pytest.raises(InputError, match="too few companions"):
    IconSets("test", images=5, words=40)


def test_a_storys_last_sentence_follows_from_the_pictures_before():
  source = IconSets("test", images=4, asks="ending")
  for i in range(40):
    found = source.set(i)
    # The pictures are those of the set, so that features are kept once.
    assert found.pictures == IconSets("test", images=4).set(i).pictures
    before, last = ([dict(p) for p in found.pictures[:-1]],
                    dict(found.pictures[-1]))
    (hero,) = set(last).intersection(*before)
    assert hero == found.shared and found.answer == ending(hero, last[hero])
    assert len(set(found.choices)) == 4 and found.answer in found.choices
    # The last picture alone makes two others just as true.
    true_of_it = {ending(n, c) for n, c in last.items()}
    assert len(true_of_it & set(found.choices)) == 3
  told = IconSets("text", "told", images=3, asks="ending")[1]
  story = IconSets("text", images=3, asks="ending").set(1)
  lines = told["conversation"][0]["content"].split("\n")
  name, color = story.pictures[2][0]
  assert lines[2].startswith(f"here: {name} {color} ")
  assert lines[3] == ASKS["ending"]
  with pytest.raises(InputError, match=r"images is 2 \(3 to 5\)"):
    IconSets(images=2, asks="ending")


def test_stories_as_a_task():
  task = open_task("icon_stories", dict(split="validation", sets=8,
                                        train_sets=20, things=6, words=112))
  assert len(task.items) == 24 and [
      len(task.image(i)) for i in (0, 8, 16)] == [3, 4, 5]
  assert all(q == ASKS["ending"] for q, _ in task.training)

  class Parrot:
    """Says the truth, but for the first story."""
    config = None

    def prompt(self, example, key):
      return task.items[key]

    def generator(self):
      return self

    def generate(self, prompts, read, count):
      return [["in", "the", "end"] if i == 0 else p.answer.split()
              for i, p in enumerate(prompts)]

    def text(self, words):
      return " ".join(words)

  found = task.measures(Parrot())
  assert found["chance"] == 0.25
  assert found["written"] == pytest.approx(23 / 24)
  assert 9 < found["cider"] < 10 and found["rouge_l"] < 1
  assert {"bleu1", "bleu2", "bleu3", "bleu4"} <= found.keys()


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
    IconSets("tests", "image", sets=0, images=6, size=3, asks="end",
             things=2)
  for part in ("did you mean 'test'", "did you mean 'images'", "sets is 0",
               "images is 6", "size is 3", "things is 2", "none of shared"):
    assert part in str(error.value)
