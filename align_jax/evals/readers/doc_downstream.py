"""DeepForm, KleisterCharity, WikiTableQuestions and TabFact as pictures.

The four have no pictures of their own; AlignVLM's and DocOwl's come from
DocDownstream-1.0, see data/doc_downstream.py for its records:

  test/DeepForm_test.jsonl                   a question a line
  meta/DeepForm/test/metadata.jsonl          the same lines: file_name, and
      ground_truth, JSON text with {"gt_parses": [{"question", "answer"}]}
  meta/DeepForm/test/document.jsonl          the DUE benchmark's references:
      {"name": "0a1b", "annotations": [{"key": "gross_amount", "values":
       [{"value": "$1.00", "value_variants": ["$1.00", "1.00"]}]}]}

Sources of the layout: X-PLUG/mPLUG-DocOwl:
DocOwl1.5/docowl_benchmark_evaluate.py and
DocOwl1.5/evaluation/due_benchmarks_eval.py (llm_duebenchmark_eval);
due-benchmark/du-schema for the references. TabFact needs no `meta`.
"""

import json
from pathlib import Path

from align_jax.data.doc_downstream import MARK
from align_jax.data.tables import Row, json_rows
from align_jax.errors import InputError
from align_jax.evals.readers.benchmark import Benchmark

KEYS = {
    "DeepForm": ("advertiser", "flight_from", "flight_to", "gross_amount",
                 "contract_num"),
    "KleisterCharity": (
        "address__post_town", "address__postcode", "address__street_line",
        "charity_name", "charity_number", "income_annually_in_british_pounds",
        "report_date", "spending_annually_in_british_pounds"),
}


class _DocDownstream(Benchmark):
  """One of the sets; `dataset` is its name in file names."""
  dataset = ""

  def asked(self) -> list[tuple[Row, str, str, Path]]:
    """(record, question, answer, image) of each line."""
    out = []
    for row in json_rows(self.folder / "test" / f"{self.dataset}_test.jsonl"):
      images, turns = row.texts("image"), row.rows("messages")
      if len(images) != 1 or len(turns) != 2:
        raise row.fault(f"{len(images)} images and {len(turns)} messages; "
                        "expected one image, a question and an answer")
      question, answer = (turn.text("content") for turn in turns)
      out.append((row, question.replace(MARK, "").strip(), answer,
                  self.path(row, images[0])))
    return out

  def meta(self, count: int) -> list[tuple[Row, str, str]]:
    """(record, document, question) of each line of metadata.jsonl."""
    path = self.folder / "meta" / self.dataset / "test" / "metadata.jsonl"
    out = []
    for row in json_rows(path):
      try:
        truth = json.loads(row.text("ground_truth"))
      except json.JSONDecodeError as error:
        raise row.fault(f"field 'ground_truth': {error}") from error
      parse = Row(truth, f"{row.origin}, ground_truth").rows("gt_parses")[0]
      name = row.text("file_name").rpartition("/")[2].partition(".pdf")[0]
      out.append((row, name, parse.text("question")))
    if len(out) != count:
      raise InputError(f"{path}: {len(out)} lines for {count} questions")
    return out

  def references(self) -> dict[tuple[str, str], list[list[str]]]:
    """(document, key) -> its values, each with its variants."""
    path = self.folder / "meta" / self.dataset / "test" / "document.jsonl"
    found: dict[tuple[str, str], list[list[str]]] = {}
    for row in json_rows(path):
      document = row.text("name")
      for annotation in row.get("annotations", list):
        entry = Row(annotation, f"{row.origin}, annotations")
        values = [[v.text("value"), *(v.fields.get("value_variants") or ())]
                  for v in entry.rows("values")]
        found.setdefault((document, entry.text("key")), []).extend(values)
    return found


class DeepForm(_DocDownstream):
  """DeepForm; scored by DUE's F1."""
  name, scorer, dataset = "deepform", "due_f1", "DeepForm"

  def read(self) -> None:
    lines, references = self.asked(), self.references()
    for number, ((row, question, answer, image), (_, document, said)) in (
        enumerate(zip(lines, self.meta(len(lines))))):
      # As DocOwl finds it: the first key that the question holds.
      key = next((k for k in KEYS[self.dataset] if k in said), None)
      if key is None:
        raise row.fault(f"the question {said!r} names none of "
                        f"{', '.join(KEYS[self.dataset])}")
      self.add(row, number, question, answer, [image], kind=key, facts={
          "document": document, "key": key,
          "values": references.get((document, key), [])})


class Klc(DeepForm):
  """KleisterCharity; scored by DUE's F1."""
  name, dataset = "klc", "KleisterCharity"


class Wtq(_DocDownstream):
  """WikiTableQuestions; scored by denotation."""
  name, scorer, dataset = "wtq", "denotation", "WikiTableQuestions"
  max_new_tokens = 32

  def read(self) -> None:
    lines, references = self.asked(), self.references()
    for number, ((row, question, answer, image), (meta, document, said)) in (
        enumerate(zip(lines, self.meta(len(lines))))):
      values = references.get((document, said))
      if values is None:
        raise meta.fault(f"document.jsonl has no question {said!r} for "
                         f"{document!r}")
      self.add(row, number, question, answer, [image],
               answers=tuple(v[0] for v in values))


class TabFact(_DocDownstream):
  """TabFact; scored by the word true or false."""
  name, scorer, dataset = "tabfact", "tabfact", "TabFact"
  answers = ("True", "False")

  def read(self) -> None:
    for number, (row, question, answer, image) in enumerate(self.asked()):
      if answer.strip(".").lower() not in ("true", "false", "0", "1"):
        raise row.fault(f"the answer is {answer!r}, not True or False")
      self.add(row, number, question, answer, [image])
