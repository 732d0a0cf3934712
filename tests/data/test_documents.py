"""Documents: what is asked follows from what is drawn, of real tables."""

import collections
import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

if importlib.util.find_spec("vega_datasets") is None:
  pytest.skip("vega-datasets is not installed", allow_module_level=True)

from align_jax.data import SOURCES  # noqa: E402
from align_jax.data.documents.facts import (  # noqa: E402
  KINDS,
  LETTERS,
  SCRAP,
  WORDS,
  cells,
  tables,
  transcription,
)
from align_jax.data.documents.source import Documents  # noqa: E402
from align_jax.errors import InputError  # noqa: E402
from align_jax.evals.tasks import open_task  # noqa: E402


@pytest.fixture(scope="module")
def source() -> Documents:
  return SOURCES.get("documents")("train", documents=400)


def test_words_are_those_of_real_tables(source):
  assert set(tables()) == {"cars", "stocks", "weather", "roads", "wheat"}
  assert "ford" in tables()["cars"].names
  assert "100" in tables()["stocks"].columns["price"]
  assert max(len(cells(name, column)) for name, table in tables().items()
             for column in ("name", *table.columns)) <= WORDS
  for i in range(100):
    shown = source.document(i)
    real = tables()[shown.table]
    for name, *values in shown.rows:
      assert name in real.names
      columns = ([real.columns[shown.columns[0]]] if shown.kind == "chart"
                 else real.columns.values())
      for value, column in zip(values, columns, strict=True):
        assert value in column and len(value) <= LETTERS


def test_no_name_tells_its_values(source):
  """Else who knows the tables by heart would need no picture."""
  seen = collections.defaultdict(set)
  for i in range(400):
    shown = source.document(i)
    if shown.table == "roads" and shown.kind in ("table", "cover"):
      for name, _, _, side in shown.rows:
        seen[name].add(side)
  assert sum(map(len, seen.values())) > 1.5 * len(seen)


def test_answers_are_true_and_in_their_closed_set(source):
  kinds = collections.Counter()
  for i in range(source.documents):
    shown = source.document(i)
    column_of = {name: at for at, name in enumerate(shown.columns, 1)}
    for kind, question, answer, closed in source.ask(i):
      kinds[kind] += 1
      assert answer in closed and len(set(closed)) == len(closed)
      words = question.rstrip("?").split()
      rows = {row[0]: row for row in shown.rows}
      if kind == "cell" or shown.covered:
        assert rows[words[-1]][column_of[words[3]]] == answer
      elif kind == "most":
        at = column_of[words[-1]]
        best = {row[0]: float(row[at]) for row in shown.rows}
        assert [n for n, v in best.items() if v == max(best.values())] == [
            answer]
      elif kind == "field":
        assert shown.rows[0][shown.columns.index(words[-1])] == answer
      elif kind == "absent":
        assert words[-1] not in shown.columns and answer == "none"
      elif kind == "statement":
        true = rows[words[-2]][column_of[words[2]]] == words[-1]
        assert answer == ("yes" if true else "no")
      elif kind == "count":
        at = column_of[words[-2]]
        assert sum(row[at] == words[-1] for row in shown.rows) == int(answer)
      if shown.covered:
        row, column = shown.covered
        assert shown.rows[row][column] == answer
        assert kind == f"covered_{'hard' if shown.hard else 'easy'}"
  assert all(kinds[k] > 20 for k in (
      "cell", "most", "field", "absent", "statement", "count",
      "covered_easy", "covered_hard")), kinds


def test_statements_are_true_as_often_as_not():
  source = Documents("validation", kinds=("table", "chart"), documents=600)
  said = collections.Counter(
      q.answer for i in range(600) for q in source.ask(i)
      if q.kind == "statement")
  assert 0.4 < said["yes"] / sum(said.values()) < 0.6


def test_a_covered_word_is_covered_and_told_to_text_alone():
  source = Documents(kinds=("cover",), documents=60)
  for i in range(60):
    shown = source.document(i)
    row, column = shown.covered
    place, truth = 4 * (row + 1) + column, shown.rows[row][column]
    seen, told = (transcription(shown, covered=c).split()
                  for c in (True, False))
    assert (seen[place], told[place]) == ("...", truth)
    assert seen[:place] + seen[place + 1:] == told[:place] + told[place + 1:]
    pixels = np.asarray(Image.open(io.BytesIO(source.image(i))), int)
    cell = pixels[32 * (row + 1):32 * (row + 2), 32 * column:32 * column + 32]
    grey = (cell == 128).all(-1).mean()
    assert (0.55 < grey < 0.7) if shown.hard else (0.4 < grey < 0.55)


def test_every_cell_lies_in_a_patch_of_its_own():
  source = Documents(kinds=("table", "form"), documents=30)
  for i in range(30):
    shown = source.document(i)
    pixels = np.asarray(Image.open(io.BytesIO(source.image(i))), int)
    ink = np.abs(pixels - pixels[0, 0]).sum(-1) > 120
    used = ink.reshape(4, 32, 4, 32).any((1, 3))
    if shown.kind == "form":
      assert used[:, 0].all() and used[:, 2].all()
      assert not used[:, 1].any() and not used[:, 3].any()
    else:
      assert used.ravel()[1:].all() and not used[0, 0]
    # Nothing touches the border of a patch from both sides.
    assert not (ink[:, 31::32][:, :3] & ink[:, 32::32]).any()


def test_a_transcription_has_a_word_where_a_picture_has_a_patch():
  for kind in (*KINDS, SCRAP):
    source = Documents("tower", "captions", kinds=(kind,), documents=20)
    for i in range(20):
      words = source[i]["conversation"][1]["content"].split()
      pixels = np.asarray(Image.open(io.BytesIO(source.image(i))), int)
      # Ink is darker than any bar or cover.
      ink = (pixels.max(-1) < 90).reshape(4, 32, 4, 32).any((1, 3)).ravel()
      bars = {5, 6, 7, 9, 10, 11} if kind == "chart" else set()
      for place, (word, dark) in enumerate(zip(words, ink, strict=True)):
        if place not in bars and word != "...":
          assert (word != ".") == dark


def test_of_a_scrap_is_asked_what_it_says():
  source = Documents(kinds=(SCRAP,), documents=20)
  for i in range(20):
    shown, (asked, _) = source.document(i), source.ask(i)
    assert asked.kind == "read" and asked.closed == ()
    assert asked.answer.split() == [
        w for w in transcription(shown).split() if w != "."]
  with pytest.raises(InputError, match="a scrap may say anything"):
    open_task("documents", dict(kinds=(SCRAP,)))


def test_samples():
  source, told = (Documents(form=form, documents=8)
                  for form in ("questions", "told"))
  assert len(source) == 16 and len(told) == 8
  example = source[5]
  assert example["id"] == "documents/train/2/1"
  assert example["conversation"][0]["content"] == (
      f"<image>\n{source.ask(2)[1].question}")
  assert example["images"][0]() == Documents(documents=3).image(2)
  first = told[2]["conversation"][0]["content"]
  assert first.startswith(transcription(told.document(2), covered=False))
  assert told[2]["images"] == [] and len(told[2]["conversation"]) == 4


def test_task_asks_each_question_among_its_own_cells():
  task = open_task("documents", dict(split="validation", documents=20,
                                     train_documents=30))
  assert len(task.items) == 40 and len(task.training) == 60
  for item in task.items:
    assert item.answer in item.closed
    assert task.example(item)["conversation"][1]["content"] == item.answer
  assert all(a != b for a, b in enumerate(task.exchanged(0)))
  with pytest.raises(InputError, match="is what was trained"):
    open_task("documents", {"split": "train"})


def test_kinds_come_in_turn_and_splits_are_held_apart(source):
  assert [source.document(i).kind for i in range(4)] == list(KINDS)
  assert len({Documents(split).image(0)
              for split in ("text", "tower", "train", "test")}) == 4


def test_columns_are_what_the_table_has():
  assert "sun" in cells("weather", "sky") and "dec" in cells("weather", "name")


def test_bad_options():
  with pytest.raises(InputError) as error:
    Documents("tests", kinds=("tables",), size=9, documents=0)
  for part in ("did you mean 'test'", "did you mean 'table'", "size is 9",
               "documents is 0"):
    assert part in str(error.value)
