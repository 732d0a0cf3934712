"""Word lists: what a corpus talks of, in basic forms."""

import json

import pytest

pytest.importorskip("HanTa")
pytest.importorskip("english_words")

from align_jax.cli.main import main  # noqa: E402
from align_jax.errors import InputError  # noqa: E402
from align_jax.labels import wordlist  # noqa: E402

TEXTS = [
    "A small brown dog is running across the wet grass. Two dogs run!",
    "The brown bicycles of Kenneth stand near a house\nA dog, a bicycle."]


def test_nouns_adjectives_and_verbs_in_basic_form():
  found = wordlist.frequent_words(TEXTS, least=1)
  assert list(found.items())[:4] == [
      ("dog", 3), ("bicycle", 2), ("brown", 2), ("run", 2)]
  assert {"small", "wet", "grass", "house", "stand"} < set(found)
  assert not {"the", "a", "is", "be", "two", "near", "kenneth"} & set(found)


def test_rare_words_and_other_kinds_are_left_out():
  assert set(wordlist.frequent_words(TEXTS, least=2)) == {
      "dog", "bicycle", "brown", "run"}
  assert set(wordlist.frequent_words(TEXTS, 2, ["nouns"])) == {
      "dog", "bicycle"}


def test_a_general_list_follows():
  words = wordlist.word_list(TEXTS, least=2, general="gcide")
  assert words[:4] == ["dog", "bicycle", "brown", "run"]
  assert len(words) == len(set(words)) > 100_000
  assert words[4:] == sorted(words[4:])


def test_bad_input():
  with pytest.raises(InputError, match="known: gcide, web2"):
    wordlist.word_list(TEXTS, 1, "2of12")
  with pytest.raises(InputError, match="no noun, adjective or verb"):
    wordlist.word_list(["of the"], 1)
  with pytest.raises(InputError, match="known: nouns, adjectives, verbs"):
    wordlist.frequent_words(TEXTS, 1, ["adverbs"])


def test_verb(tmp_path, capsys):
  corpus = tmp_path / "captions.json"
  corpus.write_text(json.dumps([
      {"id": str(i), "conversations": [
          {"from": "human", "value": "Say what you see."},
          {"from": "gpt", "value": text}]} for i, text in enumerate(TEXTS)]))
  out = tmp_path / "words.txt"
  source = json.dumps({"kind": "llava", "options": {"path": str(corpus)}})
  argv = ["data", "words", "--source", source, "--least", "2", "--out",
          str(out), "--json"]
  assert main(argv) == 0
  assert json.loads(capsys.readouterr().out) == {
      "file": str(out), "words": 4, "examples": 2}
  assert out.read_text().split() == ["dog", "bicycle", "brown", "run"]
  assert main(argv) == 2  # an existing list is not overwritten
  assert "exists" in capsys.readouterr().err
