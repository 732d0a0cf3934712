"""Rows of published files know the line they stand in."""

import pytest

from align_jax.data import tables


@pytest.mark.parametrize("text, lines", [
    ('[{"a": 1},\n {"a": 2}]', [1, 2]), ("[]", []),
    ('{"x": {"a": 1},\n\n"y": {"a": 2}}', [1, 3]),
    ('{"a": 1}\n\n{"a": 2}\n', [1, 3]), ('{"a": 1}', [1]),
    ('\ufeff[{"a": 1}]', [1])])
def test_json_rows_know_their_lines(tmp_path, text: str, lines: list[int]):
  path = tmp_path / "x.json"
  path.write_text(text, encoding="utf-8")
  rows = list(tables.json_rows(path))
  assert [int(r.origin.rsplit(":")[-1]) for r in rows] == lines
  assert [r.get("a", int) for r in rows] == list(range(1, len(rows) + 1))


def test_a_table_cell_may_hold_lines(tmp_path):
  path = tmp_path / "x.tsv"
  path.write_text('a\tb\n"1\n2"\t3\n4\t5\n')
  rows = list(tables.table_rows(path, delimiter="\t"))
  assert [r.fields for r in rows] == [{"a": "1\n2", "b": "3"},
                                      {"a": "4", "b": "5"}]
  assert [r.origin.rsplit(":")[1] for r in rows] == ["2", "4"]
