"""Real tables, cut down to what fits into a small document."""

import csv
import functools
import importlib.util
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

from align_jax.errors import InputError

MISSING = ("documents are drawn from the tables of the package "
           "vega-datasets; install align-jax[documents]")

# Letters of a cell at most, so that each is legible in a patch of its own.
LETTERS = 5
ROWS = 3  # of a document, each with a name and three values
KINDS = ("table", "form", "chart", "cover")
MONTHS = ("jan feb mar apr may jun jul aug sep oct nov dec").split()


class Table(NamedTuple):
  """A real table: what its rows are called, its columns, its rows.

  Attributes:
    columns: three.
    rows: name -> alternatives for its three values, from the data.
  """
  columns: tuple[str, ...]
  rows: dict[str, list[tuple[str, ...]]]


class Document(NamedTuple):
  """What a document says.

  Attributes:
    kind: one of KINDS.
    table: where it is from, a key of `tables`.
    columns: of its values; a chart has one.
    rows: names with their values; a form has one.
    covered: (row, column) of a cell that is hidden, 0 the name; else None.
    hard: whether all but a sliver of that cell is hidden, or its lower half.
  """
  kind: str
  table: str
  columns: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  covered: tuple[int, int] | None = None
  hard: bool = False


class Question(NamedTuple):
  """A question with one right answer.

  Attributes:
    kind: "cell", "most", "field", "covered_easy" or "covered_hard".
    closed: all that such a cell ever holds in its table.
  """
  kind: str
  question: str
  answer: str
  closed: tuple[str, ...]


@functools.cache
def tables() -> dict[str, Table]:
  """The real tables, by name.

  Raises:
    InputError: vega-datasets is not installed.
  """
  whole = lambda x: str(round(float(x)))
  cars = [(row["Name"].split()[0], (
      whole(row["Horsepower"]), whole(row["Miles_per_Gallon"]),
      str(row["Cylinders"]))) for row in _read("cars.json")
          if row["Horsepower"] and row["Miles_per_Gallon"]]
  stocks = [(row["symbol"].lower(), (
      row["date"].split()[2], row["date"].split()[0].lower(),
      whole(row["price"]))) for row in _read("stocks.csv")]
  weather = [(MONTHS[int(row["date"].split("/")[1]) - 1], (
      whole(row["temp_max"]), row["weather"], whole(row["wind"])))
             for row in _read("seattle-weather.csv")]
  driving = [(str(row["year"]), (
      str(row["miles"]), f"{row['gas']:.2f}", row["side"]))
             for row in _read("driving.json")]
  wheat = [(str(row["year"]), (
      whole(row["wheat"]), whole(row["wages"]), str(row["year"])[:2]))
           for row in _read("wheat.json") if row.get("wages")]
  made = {"cars": _table(("power", "miles", "cyl"), cars),
          "stocks": _table(("year", "month", "price"), stocks),
          "weather": _table(("heat", "sky", "wind"), weather),
          "roads": _table(("miles", "gas", "side"), driving),
          "wheat": _table(("wheat", "wages", "age"), wheat)}
  return made


def _table(columns: tuple[str, ...],
           rows: list[tuple[str, tuple[str, ...]]]) -> Table:
  """Rows whose cells are short enough, each once."""
  found: dict[str, list[tuple[str, ...]]] = {}
  for name, values in rows:
    if max(map(len, (name, *values))) <= LETTERS and min(
        map(len, values)) and values not in found.setdefault(name, []):
      found[name].append(values)
  return Table(columns, {n: v for n, v in sorted(found.items()) if v})


def _read(name: str) -> list[dict[str, Any]]:
  spec = importlib.util.find_spec("vega_datasets")
  if spec is None or spec.origin is None:
    raise InputError(MISSING)
  file = Path(spec.origin).parent / "_data" / name
  with file.open(encoding="utf-8", newline="") as stream:
    return (json.load(stream) if name.endswith(".json")
            else list(csv.DictReader(stream)))


def document(rng: random.Random, kind: str) -> Document:
  """A document of this kind, of rows drawn from one of the tables."""
  name = rng.choice(sorted(tables()))
  table = tables()[name]
  names = rng.sample(list(table.rows), ROWS)
  rows = tuple((n, *rng.choice(table.rows[n])) for n in names)
  if kind == "form":
    return Document(kind, name, ("name", *table.columns), rows[:1])
  if kind == "chart":
    column = rng.choice(_numeric(table.columns, rows))
    at = 1 + table.columns.index(column)
    return Document(kind, name, (column,),
                    tuple((r[0], r[at]) for r in rows))
  covered, hard = None, False
  if kind == "cover":
    covered = rng.randrange(ROWS), rng.randrange(1 + len(table.columns))
    hard = rng.random() < 0.5
  return Document(kind, name, table.columns, rows, covered, hard)


@functools.cache
def cells(table: str, column: str) -> tuple[str, ...]:
  """All that stands in a column of a real table; "name" is the first."""
  made = tables()[table]
  if column == "name":
    return tuple(made.rows)
  at = made.columns.index(column)
  return tuple(sorted({values[at] for rows in made.rows.values()
                       for values in rows}))


def _numeric(columns: tuple[str, ...],
             rows: tuple[tuple[str, ...], ...]) -> list[str]:
  return [name for at, name in enumerate(columns, 1)
          if all(_number(row[at]) is not None for row in rows)]


def _number(text: str) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None


def ask(rng: random.Random, shown: Document) -> Question:
  """A question with one right answer."""
  closed = functools.partial(cells, shown.table)
  if shown.covered:
    row, column = shown.covered
    return Question(
        f"covered_{'hard' if shown.hard else 'easy'}",
        "what is the covered word?", shown.rows[row][column],
        closed(("name", *shown.columns)[column]))
  column = rng.randrange(len(shown.columns))
  name = shown.columns[column]
  if shown.kind == "form":
    return Question("field", f"what is the {name}?", shown.rows[0][column],
                    closed(name))
  values = [_number(row[column + 1]) for row in shown.rows]
  if None not in values and values.count(max(values)) == 1 and (
      rng.random() < 0.5):
    best = shown.rows[values.index(max(values))][0]
    return Question("most", f"which has the most {name}?", best,
                    closed("name"))
  row = rng.choice(shown.rows)
  return Question("cell", f"what is the {name} of {row[0]}?",
                  row[column + 1], closed(name))


def transcription(shown: Document) -> str:
  """What stands there, line by line; "..." where it is covered."""
  if shown.kind == "form":
    return "\n".join(f"{a}: {b}" for a, b in zip(
        shown.columns, shown.rows[0]))
  rows = [list(row) for row in shown.rows]
  if shown.covered:
    rows[shown.covered[0]][shown.covered[1]] = "..."
  return "\n".join(" ".join(row) for row in (("name", *shown.columns), *rows))
