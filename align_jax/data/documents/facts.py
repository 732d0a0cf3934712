"""Real tables, cut down to what fits into a small document.

Names and cells are of the real tables, numbers rounded, and of a column what
stands there most often, so that there are few enough words for a small tower
and a short training to tell apart. Which value stands beside which name is
drawn anew for each document: in the real tables a year has but one price of
gas, and a language model that knows it need not look.
"""

import collections
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
WORDS = 8  # of a column, and of names
ROWS = 3  # of a document, each with a name and three values
ACROSS = 4  # cells across, and down
KINDS = ("table", "form", "chart", "cover")
# What is asked of a kind of document, and how often. Of a cover only what is
# covered; where several are the most, a cell instead.
ASKED = {
    # WTQ and TableVQA, TabFact
    "table": {"cell": 0.55, "most": 0.15, "count": 0.15, "statement": 0.15},
    # DeepForm and KLC, where a key may be missing; DocVQA
    "form": {"field": 0.8, "absent": 0.2},
    # ChartQA and InfoVQA
    "chart": {"cell": 0.6, "most": 0.2, "statement": 0.2}}
NONE = "none"  # of a key that a form does not have
# A few words of a table anywhere, to learn reading: all that is asked is what
# they are.
SCRAP = "scrap"
MONTHS = ("jan feb mar apr may jun jul aug sep oct nov dec").split()


class Table(NamedTuple):
  """A real table: what its rows are called, its columns, what stands in them.

  Attributes:
    names: of its rows.
    columns: three, each with its values.
  """
  names: tuple[str, ...]
  columns: dict[str, tuple[str, ...]]


class Document(NamedTuple):
  """What a document says.

  Attributes:
    kind: one of KINDS, or SCRAP.
    table: where it is from, a key of `tables`.
    columns: of its values; a chart has one.
    rows: names with their values; a form has one.
    covered: (row, column) of a value that is hidden, from 1; else None.
    hard: whether all but a sliver of that cell is hidden, or its lower half.
    scattered: of a scrap, (cell, word) each.
  """
  kind: str
  table: str
  columns: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  covered: tuple[int, int] | None = None
  hard: bool = False
  scattered: tuple[tuple[int, str], ...] = ()

  def cells(self) -> list[str]:
    """What stands in each of the 4 x 4 cells, row by row; "" is nothing."""
    grid = [[""] * ACROSS for _ in range(ACROSS)]
    if self.kind == SCRAP:
      for cell, word in self.scattered:
        grid[cell // ACROSS][cell % ACROSS] = word
    elif self.kind == "form":
      for row, pair in enumerate(zip(self.columns, self.rows[0])):
        grid[row][0], grid[row][2] = pair
    elif self.kind == "chart":
      grid[0][0] = self.columns[0]
      for column, (name, value) in enumerate(self.rows, 1):
        grid[0][column], grid[3][column] = value, name
    else:
      grid[0][1:] = self.columns
      for row, words in enumerate(self.rows, 1):
        grid[row] = list(words)
    return [word for row in grid for word in row]


class Question(NamedTuple):
  """A question with one right answer.

  Attributes:
    kind: one of ASKED's, "covered_easy" or "covered_hard" (VCR), or "read".
    closed: all that may be answered: what such a cell ever holds in its table,
      yes or no, or a number. Of a scrap nothing: it may say anything.
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
  def rounded(x: Any, step: int) -> str:
    return str(step * round(float(x) / step))

  cars = [(row["Name"].split()[0], (
      rounded(row["Horsepower"], 50), rounded(row["Miles_per_Gallon"], 10),
      str(row["Cylinders"]))) for row in _read("cars.json")
          if row["Horsepower"] and row["Miles_per_Gallon"]]
  stocks = [(row["symbol"].lower(), (
      row["date"].split()[2], row["date"].split()[0].lower(),
      rounded(row["price"], 100))) for row in _read("stocks.csv")]
  weather = [(MONTHS[int(row["date"].split("/")[1]) - 1], (
      rounded(row["temp_max"], 10), row["weather"], rounded(row["wind"], 2)))
             for row in _read("seattle-weather.csv")]
  driving = [(rounded(row["year"], 10), (
      rounded(row["miles"], 1000), rounded(100 * row["gas"], 50),
      row["side"])) for row in _read("driving.json")]
  wheat = [(rounded(row["year"], 50), (
      rounded(row["wheat"], 20), rounded(row["wages"], 10),
      str(row["year"])[:2]))
           for row in _read("wheat.json")
           if row.get("wages")]
  return {"cars": _table(("power", "miles", "cyl"), cars),
          "stocks": _table(("year", "month", "price"), stocks),
          "weather": _table(("heat", "sky", "wind"), weather),
          "roads": _table(("miles", "gas", "side"), driving),
          "wheat": _table(("wheat", "wages", "age"), wheat)}


def _table(columns: tuple[str, ...],
           rows: list[tuple[str, tuple[str, ...]]]) -> Table:
  """Of the rows whose cells are short enough, the most frequent of a column."""
  short = [(name, *values) for name, values in rows
           if max(map(len, (name, *values))) <= LETTERS and all(values)]
  names, *values = (
      tuple(sorted(word for word, _ in collections.Counter(
          row[at] for row in short).most_common(WORDS)))
      for at in range(1 + len(columns)))
  return Table(names, dict(zip(columns, values, strict=True)))


def _read(name: str) -> list[dict[str, Any]]:
  spec = importlib.util.find_spec("vega_datasets")
  if spec is None or spec.origin is None:
    raise InputError(MISSING)
  file = Path(spec.origin).parent / "_data" / name
  with file.open(encoding="utf-8", newline="") as stream:
    return (json.load(stream) if name.endswith(".json")
            else list(csv.DictReader(stream)))


def document(rng: random.Random, kind: str) -> Document:
  """A document of this kind, its words drawn from one of the tables."""
  name = rng.choice(sorted(tables()))
  table = tables()[name]
  columns = tuple(table.columns)
  if kind == SCRAP:
    words = sorted({*table.names, *columns, *(
        w for values in table.columns.values() for w in values)})
    places = rng.sample(range(ACROSS * ACROSS), rng.randint(1, 4))
    return Document(kind, name, (), (), scattered=tuple(
        (place, rng.choice(words)) for place in sorted(places)))
  rows = tuple(
      (n, *(rng.choice(values) for values in table.columns.values()))
      for n in rng.sample(table.names, ROWS))
  if kind == "form":
    return Document(kind, name, ("name", *columns), rows[:1])
  if kind == "chart":
    column = rng.choice(_numeric(columns, rows))
    at = 1 + columns.index(column)
    return Document(kind, name, (column,),
                    tuple((r[0], r[at]) for r in rows))
  covered, hard = None, False
  if kind == "cover":
    covered = rng.randrange(ROWS), 1 + rng.randrange(len(columns))
    hard = rng.random() < 0.5
  return Document(kind, name, columns, rows, covered, hard)


def cells(table: str, column: str) -> tuple[str, ...]:
  """All that stands in a column of a table; "name" is the first."""
  made = tables()[table]
  return made.names if column == "name" else made.columns[column]


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
  """A question with one right answer, of one of the kinds in ASKED."""
  if shown.kind == SCRAP:
    return Question("read", "what does it say",
                    " ".join(word for _, word in shown.scattered), ())
  closed = functools.partial(cells, shown.table)
  if shown.covered:
    row, column = shown.covered
    name = shown.columns[column - 1]
    return Question(
        f"covered_{'hard' if shown.hard else 'easy'}",
        f"what is the {name} of {shown.rows[row][0]}",
        shown.rows[row][column], closed(name))
  kinds = ASKED[shown.kind]
  kind = rng.choices(list(kinds), list(kinds.values()))[0]
  column = rng.randrange(len(shown.columns))
  name = shown.columns[column]
  if kind == "absent":
    name = rng.choice(sorted({
        column for table in tables().values() for column in table.columns
        if column not in shown.columns}))
    home = next(n for n, t in tables().items() if name in t.columns)
    return Question(kind, f"what is the {name}", NONE,
                    (*cells(home, name), NONE))
  if kind == "field":
    return Question(kind, f"what is the {name}", shown.rows[0][column],
                    (*closed(name), NONE))
  said = [row[column + 1] for row in shown.rows]
  values = [_number(value) for value in said]
  if kind == "most" and None not in values and values.count(
      max(values)) == 1:
    best = shown.rows[values.index(max(values))][0]
    return Question(kind, f"which has the most {name}", best, closed("name"))
  row = rng.choice(shown.rows)
  if kind == "statement":
    true = rng.random() < 0.5
    others = [v for v in said if v != row[column + 1]] or [
        v for v in closed(name) if v != row[column + 1]]
    value = row[column + 1] if true else rng.choice(others)
    return Question(kind, f"is the {name} of {row[0]} {value}",
                    "yes" if true else "no", ("yes", "no"))
  if kind == "count":
    value = rng.choice([*said, rng.choice(closed(name))])
    return Question(kind, f"how many have the {name} {value}",
                    str(said.count(value)),
                    tuple(str(n) for n in range(ROWS + 1)))
  return Question("cell", f"what is the {name} of {row[0]}",
                  row[column + 1], closed(name))


def transcription(shown: Document, covered: bool = True) -> str:
  """What stands in each cell, row by row, "." where nothing does.

  A cell is a word, and most words are a token: so a language model that has
  read such text has read what visual tokens would be, were they words.

  Args:
    shown: the document.
    covered: whether a covered word is "...", as one sees it, or is told.
  """
  words = [word or "." for word in shown.cells()]
  if shown.covered and covered:
    row, column = shown.covered
    words[(row + 1) * ACROSS + column] = "..."
  return " ".join(words)
