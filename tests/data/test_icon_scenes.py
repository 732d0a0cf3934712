"""Icon scenes: what is said of a scene is what is drawn."""

import collections
import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fontawesomefree")

from align_jax.data import SOURCES  # noqa: E402
from align_jax.data.icon_scenes import (  # noqa: E402
  IconScenes,
  answers,
  concepts,
)
from align_jax.data.linked_images.scenes import COLORS  # noqa: E402
from align_jax.errors import InputError  # noqa: E402


@pytest.fixture(scope="module")
def source() -> IconScenes:
  return SOURCES.get("icon_scenes")("train", scenes=150)


def pixels(source, scene) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(source.image(scene))), int)


def test_things_are_where_it_is_said_in_their_colours(source):
  counts = set()
  for scene in range(60):
    image, things = pixels(source, scene), source.things(scene)
    counts.add(len(things))
    assert image.shape == (96, 96, 3)
    outside = np.ones((96, 96), bool)
    for name, color, (y0, x0, y1, x1) in things:
      near = np.abs(image[y0:y1, x0:x1] - COLORS[color]).sum(-1) < 12
      assert near.any(), (scene, name)
      outside[y0:y1, x0:x1] = False
    assert len(np.unique(image[outside], axis=0)) == 1
    assert len({t.name for t in things}) == len(things)
    assert len({t.color for t in things}) == len(things)
  assert counts == {2, 3, 4, 5}


def test_captions_name_all_things():
  captions = IconScenes(form="captions", scenes=20)
  assert len(captions) == 20
  for i in range(20):
    said = captions[i]["conversation"][1]["content"]
    for thing in captions.things(i):
      assert f"a {thing.color} {thing.name}" in said


def test_names_are_captions_without_their_colours():
  captions, names = (IconScenes(form=form, scenes=20)
                     for form in ("captions", "names"))
  for i in range(20):
    first, other = captions[i], names[i]
    said = other["conversation"][1]["content"]
    for thing in captions.things(i):
      first_said = first["conversation"][1]["content"]
      assert f"a {thing.color} {thing.name}" in first_said
      assert f"a {thing.name}" in said
    assert not set(COLORS) & set(said.replace(",", "").split())
    assert other["images"][0].name == first["images"][0].name


def test_answers_are_true(source):
  kinds = collections.Counter()
  yes = 0
  for scene in range(source.scenes):
    things = source.things(scene)
    color_of = {t.name: t.color for t in things}
    for kind, question, answer in source.ask(scene):
      kinds[kind] += 1
      word = question.split()[-1].rstrip("?")
      assert answer in answers()[kind]
      if kind == "thing":
        assert color_of[answer] == question.split()[3]
      elif kind == "color":
        assert color_of[word] == answer
      elif kind == "there":
        assert (word in color_of) == (answer == "yes")
        yes += answer == "yes"
      else:
        assert answer == str(len(things))
  assert all(count > 100 for count in kinds.values())
  assert abs(yes / kinds["there"] - 0.5) < 0.12


def test_a_word_or_a_dot_stands_for_each_ninth_of_a_scene():
  source = IconScenes(form="placed", scenes=40, kinds=("first", "last"))
  for scene in range(40):
    said = source[scene]["conversation"]
    here, *cells = said[0]["content"].split("\n")[0].split()
    assert here == "here:" and source[scene]["images"] == []
    truth = source.truth(scene, 3)
    assert [{c} - {"."} for c in cells] == truth
    named = [c for c in cells if c != "."]
    for kind, question, answer in source.ask(scene):
      assert question == f"which thing comes {kind}"
      assert answer == named[{"first": 0, "last": -1}[kind]]
      assert answer in answers()[kind]


def test_samples_are_questions_on_scenes(source):
  assert len(source) == 600
  example = source[13]
  kind, question, answer = source.ask(3)[1]
  asked, said = example["conversation"]
  assert asked["content"] == f"<image>\n{question}"
  assert said["content"] == answer and kind in answers()
  assert example["images"][0]() == source.image(3)
  assert example["id"] == "icon_scenes/train/3/1"


def test_truth_of_patches_is_what_covers_them(source):
  for scene in range(10):
    truth = source.truth(scene, 12)
    for place, words in enumerate(truth):
      row, col = divmod(place, 12)
      for name, _, (y0, x0, y1, x1) in source.things(scene):
        covered = np.zeros((96, 96), bool)
        covered[y0:y1, x0:x1] = True
        share = covered[8 * row:8 * row + 8, 8 * col:8 * col + 8].mean()
        assert (name in words) == (share >= 0.25)
    assert set().union(*truth) == {t.name for t in source.things(scene)}


def test_splits_and_seeds_are_held_apart():
  made = {(split, seed): IconScenes(split, scenes=3, seed=seed).image(0)
          for split in ("tower", "train", "validation", "test")
          for seed in (0, 1)}
  assert len(set(made.values())) == 8
  assert IconScenes("test").image(0) == made["test", 0]


def test_a_smaller_world_and_questions_of_some_kinds():
  source = IconScenes("train", "questions", scenes=60, words=20,
                      kinds=("names", "color"))
  asked = [q for i in range(60) for q in source.ask(i)]
  assert {q.kind for q in asked} == {"names", "color"}
  said = [q.answer.split() for q in asked if q.kind == "names"]
  assert {n for names in said for n in names} == set(concepts(20))
  here = next((i, q) for i in range(60) for q in source.ask(i)
              if q.kind == "names")
  assert here[1].answer.split() == [t.name for t in source.things(here[0])]
  assert set(concepts(20)) < set(concepts())
  assert source.picture(0).name != IconScenes("train").picture(0).name
  with pytest.raises(InputError, match="words is 999"):
    IconScenes(words=999)
  with pytest.raises(InputError, match="'colour' is none of .*'color'"):
    IconScenes(kinds=("colour",))


def test_there_are_many_concepts():
  assert len(answers()["thing"]) >= 200


def test_bad_options():
  with pytest.raises(InputError) as error:
    IconScenes("tests", "caption", scenes=0, size=9)
  for part in ("'tests' is none of", "did you mean 'test'",
               "'caption' is none of", "scenes is 0", "size is 9"):
    assert part in str(error.value)


def test_other_forms_say_the_same():
  turns = IconScenes("text", "turns", scenes=20)
  told, said = (IconScenes("text", form, scenes=20)
                for form in ("told", "said"))
  for i in range(20):
    caption = turns.caption(i)
    first, other = (s[i]["conversation"] for s in (turns, told))
    assert len(first) == 8 and first[1:] == other[1:]
    assert first[0]["content"] == f"<image>\n{turns.ask(i)[0].question}"
    assert other[0]["content"] == f"{caption}\n{turns.ask(i)[0].question}"
    assert told[i]["images"] == said[i]["images"] == []
    assert [t["content"] for t in said[i]["conversation"]] == ["", caption]


def test_scenes_of_one_thing():
  source = IconScenes("tower", "captions", scenes=30, least=1, most=1)
  for i in range(30):
    (name, color, _), = source.things(i)
    assert source.caption(i) == f"a {color} {name}"
  with pytest.raises(InputError, match="most is 12 .at most 9"):
    IconScenes(most=12)


def test_copies_have_one_name():
  source = IconScenes("tower", "names", scenes=40, least=1, most=1, copies=9)
  counts, colors = set(), set()
  for i in range(40):
    things = source.things(i)
    counts.add(len(things))
    colors.add(len({t.color for t in things}))
    name, = {t.name for t in things}
    assert source[i]["conversation"][1]["content"] == f"a {name}"
    assert len({t.box for t in things}) == len(things)
  assert counts == set(range(3, 10)) and max(colors) > 3
  two = IconScenes("tower", "captions", scenes=20, least=2, most=2, copies=4)
  for i in range(20):
    things = two.things(i)
    assert 4 <= len(things) <= 8
    assert len({t.name for t in things}) == 2
    assert {f"a {t.color} {t.name}" for t in things} == set(
        two.caption(i).split(" and "))
  with pytest.raises(InputError) as error:
    IconScenes(form="turns", most=5, copies=2)
  assert "most is 5 and copies is 2 (at most 9 things)" in str(error.value)
  assert "only the forms 'captions' and 'names'" in str(error.value)


def test_images_are_named_apart():
  names = {IconScenes(**{"split": "train", **options}).picture(0).name
           for options in ({}, {"split": "test"}, {"seed": 1}, {"size": 48},
                           {"most": 4}, {"least": 1},
                           {"form": "names", "most": 4, "copies": 2})}
  assert len(names) == 7
