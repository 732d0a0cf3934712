"""Lists of another source's words, and which one follows which."""

import pytest

from align_jax.data import SOURCES
from align_jax.data.recall import Recall
from align_jax.errors import InputError

SCENES = dict(kind="icon_scenes", options=dict(
    split="text", form="said", scenes=20))


def read(source, index):
  """(list, [(asked, answer)]) of a sample."""
  turns = [turn["content"] for turn in source[index]["conversation"]]
  *said, first = turns[0].split(" ")
  return said, list(zip([first, *turns[2::2]], turns[1::2]))


def test_the_answer_follows_in_the_list_and_its_first_word_is_not_asked_for():
  source = Recall(SCENES, words=12, questions=5)
  assert len(source) == 20
  places = set()
  for index in range(20):
    said, turns = read(source, index)
    assert len(said) == len(set(said)) == 12
    assert len(turns) == 5
    for asked, answer in turns:
      places.add(said.index(asked))
      assert answer == said[said.index(asked) + 1]
  assert places == set(range(1, 11))


def test_words_are_the_other_sources_in_an_order_of_their_own():
  source, scenes = Recall(SCENES), SOURCES.get("icon_scenes")(
      **SCENES["options"])
  told = " ".join(turn["content"] for index in range(20)
                  for turn in scenes[index]["conversation"])
  assert set(read(source, 0)[0]) <= set(told.replace(",", " , ").split())
  assert source[0] == Recall(SCENES)[0] != Recall(SCENES, seed=1)[0]
  assert read(source, 0)[0] != read(source, 1)[0]


def test_of_few_known_words_all_lists_are_made():
  lists = [read(Recall(SCENES, words=6, known=8), i)[0] for i in range(20)]
  assert len({word for said in lists for word in said}) == 8


def test_numbers_stay_whole_and_pictures_are_no_words():
  documents = Recall(dict(kind="documents", options=dict(
      split="text", form="told", documents=9)))
  assert any(word.isdigit() and len(word) > 1 for word in read(
      documents, 0)[0])
  shown = Recall(dict(kind="icon_scenes", options=dict(
      split="train", form="questions", scenes=20)), words=8)
  assert "image" not in {w for i in range(20) for w in read(shown, i)[0]}


@pytest.mark.parametrize("options, message", [
    (dict(words=2, questions=0), r"words is 2 \(at least 3\); questions is 0"),
    (dict(words=9, known=8), r"known is 8 \(at least 9\)"),
    (dict(words=900), r"the source has \d+ words, and 900 are asked for"),
])
def test_bad_options_are_refused(options, message):
  with pytest.raises(InputError, match=message):
    Recall(SCENES, **options)[0]
