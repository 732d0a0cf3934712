"""English out of Python itself, and a vocabulary learnt from it."""

import pytest

from align_jax.data.bpe import train_bpe
from align_jax.data.english import English, documents, in_split
from align_jax.data.icon_scenes import IconScenes
from align_jax.errors import InputError


@pytest.fixture(scope="module")
def held_out() -> English:
  return English("held_out", 300)


def test_passages_fit_and_lose_no_word(held_out):
  assert max(len(p.encode()) for p in held_out.passages) <= 300
  said = " ".join(held_out.passages).split()
  written = [word for text in documents("held_out").values()
             for word in text.split() if len(word.encode()) < 300]
  assert said == written
  assert len(said) > 20_000


def test_no_document_is_in_both_splits():
  names = [f"topic/{i}" for i in range(600)]
  out = [n for n in names if in_split(n, "held_out")]
  assert not any(in_split(n, "train") for n in out)
  assert 60 < len(out) < 140
  assert all(in_split(n, "held_out") for n in documents("held_out"))


def test_a_sample_is_a_passage_without_images(held_out):
  example = held_out[7]
  assert example["images"] == []
  assert [t["content"] for t in example["conversation"]] == [
      "", held_out.passages[7]]


def test_bad_options():
  with pytest.raises(InputError, match="did you mean 'held_out'"):
    English("heldout")
  with pytest.raises(InputError, match="size is 3"):
    English(size=3)


def test_a_vocabulary_has_the_worlds_words_and_knows_any_text():
  pytest.importorskip("fontawesomefree")
  world = IconScenes("text", "told", scenes=400)
  made = train_bpe([world], 512)
  again = train_bpe([world], 512)
  assert made.get_vocab() == again.get_vocab() and len(made) == 512
  for text in ("a red cat", "what color is the bus?\nred", "naïve ☃ \t x"):
    ids = made(text)["input_ids"]
    assert ids[0] == made.bos_token_id and made.eos_token_id not in ids
    assert made.decode(ids, skip_special_tokens=True) == text
  # As an answer begins, and as it stands inside a sentence.
  for word in ("red", " red", "yes"):
    assert len(made(word, add_special_tokens=False)["input_ids"]) == 1
  ends = train_bpe([world], 300, ends=True)
  assert ends("red")["input_ids"][-1] == ends.eos_token_id != 2


def test_a_vocabulary_has_room_for_all_bytes():
  with pytest.raises(InputError, match="256 bytes and 3 special tokens"):
    train_bpe([], 100)
