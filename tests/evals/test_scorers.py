"""The rules that turn answers into scores, against their references.

golden/scorers.json holds what the reference implementations give; each entry
names the file it was taken from.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from align_jax.cli.main import main
from align_jax.errors import InputError
from align_jax.evals import scorers
from align_jax.evals.scorers import SCORERS, choice, denotation, mmmu, nine
from align_jax.evals.scorers import tablevqa as table
from align_jax.evals.tasks import Item

GOLDEN = json.loads((Path(__file__).parent / "golden/scorers.json").read_text(
    encoding="utf-8"))


def item(*answers: str, **fields: Any) -> Item:
  return Item(**{"id": "1", "image": 0, "question": "q", "answer": answers[0],
                 "type": "t", "index": 0, "answers": answers} | fields)


def one(name: str, prediction: str, *answers: str, **fields: Any) -> float:
  return SCORERS.get(name)().scores([prediction],
                                    [item(*answers, **fields)])[0]


def total(name: str, said: list[str], items: list[Item]) -> dict[str, float]:
  return SCORERS.get(name)().total(said, items)


@pytest.mark.parametrize("prediction, truth, right", [
    ("Yes.", "yes", True),
    (" blue\n", "blue", True),
    ("a  Blue circle!", "a blue circle", True),
    ("yes it is", "yes", False),  # no credit for containing the answer
    ("", "no", False),
])
def test_exact_match(prediction: str, truth: str, right: bool):
  assert scorers.exact_match(prediction, truth) is right
  assert one("exact", prediction, "something else", truth) == right


def test_every_scorer_names_its_protocol_and_its_headline():
  facts = {"document": "d", "key": "k", "values": [["A"]], "group": "g",
           "size": 2, "dataset": "x"}
  for name in SCORERS.names():
    scorer = SCORERS.get(name)()
    assert len(scorer.protocol) > 40, name
    asked = [item("A", options=("a", "b"), closed=("A", "B"),
                  type="vtabfact", facts=facts)] * 2
    assert scorer.headline in scorer.total(["A", "no"], asked), name
    assert len(scorer.scores(["", "no"], asked)) == 2, name
    with pytest.raises(ValueError):
      scorer.scores(["A"], asked)  # as many answers as questions


@pytest.mark.parametrize("name", [
    "anls", "anls_vlmevalkit", "vqa_official", "vqa_evalai",
    "vqa_vlmevalkit"])
def test_scores_of_the_reference_implementation(name: str):
  for prediction, answers, want in GOLDEN[name]["cases"]:
    assert one(name, prediction, *answers) == pytest.approx(
        want, abs=1e-12), (prediction, answers)


def test_the_forms_of_a_metric_really_differ():
  assert one("anls", "  Acme  Inc. ", "ACME Inc") != one(
      "anls_vlmevalkit", "  Acme  Inc. ", "ACME Inc")
  people = ("2",) * 3 + ("two",) * 4 + ("two dogs",) * 3
  assert one("vqa_official", "two dogs", *people) == 0
  assert one("vqa_evalai", "two dogs", *people) == pytest.approx(0.9)
  assert one("vqa_official", "none", *["none"] * 8 + ["0"] * 2) < 1 == one(
      "vqa_evalai", "none", *["none"] * 8 + ["0"] * 2)


def test_due_anls_normalises_nothing_but_case():
  # due_evaluator/scorers/anls_scorer.py, and its strict boundary.
  assert one("anls_due", "AASHIRVAAD", "aashirvaad") == 1
  assert one("anls_due", " aashirvaad", "aashirvaad") == pytest.approx(10 / 11)
  assert one("anls_due", "42", "43") == 0 < one("anls", "42", "43")


@pytest.mark.parametrize("prediction, truth, right", [
    ("105", "100", True), ("105.1", "100", False), ("95", "100", True),
    ("34%", "0.34", True), ("34", "34%", False), ("Blue", "blue", True),
    ("0", "0", True), ("0.01", "0", False), ("-5", "5", False),
    ("1,000", "1000", False), ("100.0", "100", True), ("nan", "5", False)])
def test_relaxed_accuracy(prediction: str, truth: str, right: bool):
  # pix2struct: pix2struct/metrics.py (relaxed_correctness)
  assert one("relaxed", prediction, truth) == right


def test_relaxed_accuracy_strips_in_vlmevalkit_alone():
  assert one("relaxed", " blue", "blue") == 0
  assert one("relaxed_vlmevalkit", " blue", "blue") == 1
  items = [item("3", type="human"), item("4", type="augmented")]
  assert total("relaxed", ["3", "5"], items) == {
      "relaxed_accuracy": .5, "relaxed_accuracy_augmented": 0,
      "relaxed_accuracy_human": 1}


def _pairs(document: str, true: dict[str, list[str]],
           said: dict[str, str]) -> tuple[list[str], list[Item]]:
  keys = sorted({*true, *said})
  return [said.get(k, "None") for k in keys], [
      item("", facts={"document": document, "key": k,
                      "values": [[v] for v in true.get(k, [])]})
      for k in keys]


def test_due_f1():
  # due-benchmark/evaluator: tests/unit_tests/test_due_evaluator.py
  said, items = _pairs("test", {
      "are_counterparts": ["yes"], "effective_date": ["2012-09-04"],
      "first_party": ["JDA Software Group, Inc."],
      "jurisdiction": ["Delaware"],
      "second_party": ["Red Prairie Holding, Inc."], "term": ["2 years"]}, {
          "are_counterparts": "yes", "effective_date": "2011-11-08",
          "jurisdiction": "New York",
          "first_party": "JDA SOFTWARE GROUP, INC.",
          "second_party": "Red Prairie Holding, Inc."})
  got = total("due_f1", said, items)
  assert got == pytest.approx(
      {"f1": 6 / 11, "precision": 3 / 5, "recall": 3 / 6})
  # tests/unit_tests/test_fscorer.py: one of the two parties is misspelt.
  said, items = _pairs("a", {"date": ["2017-02-24"], "place": ["Ohio"]},
                       {"date": "2017-02-24", "place": "Ohio"})
  parties = [["Dennis W. Wells"], ["Lsi Industries Inc."]]
  said += ["Lsi Industries Inc.", "DEnnis W. Welts"]
  items += [item("", facts={"document": "a", "key": "party",
                            "values": parties})] * 2
  assert total("due_f1", said, items) == pytest.approx(
      {"f1": 3 / 4, "precision": 3 / 4, "recall": 3 / 4})


def test_due_f1_counts_pairs_within_their_document():
  said, items = [], []
  for document, answer in (("a", "1"), ("b", "2")):
    s, i = _pairs(document, {"k": [answer]}, {"k": "1"})
    said, items = said + s, items + i
  assert total("due_f1", said, items)["f1"] == 0.5
  assert total("due_f1", ["None", "None"], items)["f1"] == 0
  variants = item("", facts={"document": "c", "key": "k",
                             "values": [["$1.00", "1.00"]]})
  assert total("due_f1", ["1.00"], [variants])["f1"] == 1


def test_wtq_normaliser():
  for text, want in GOLDEN["wtq_normalise"]["cases"]:
    assert denotation.normalise(text) == want


@pytest.mark.parametrize("prediction, truths, right", [
    # due-benchmark/evaluator: tests/unit_tests/test_wtq_scorer.py
    ("university of california‘|university of virginia†‡*|10.0000001",
     ("university of california’", "university of virginia", "10"), True),
    ("aaa|bbb", ("bbb",), False),
    ("10.0", ("10",), True), ("1e1", ("10",), True),
    ("2001-xx-xx", ("2001",), True), ("2001-5-1", ("2001-05-01",), True),
    ("2001-5-2", ("2001-05-01",), False), ("b||a", ("a", "b"), True),
    ("a|a", ("a",), True),  # a set
    ("a", ("a", "b"), False), (r"x\py", ("x|y",), True),
    ("nan", ("nan",), True), ("10 (about)", ("10",), True)])
def test_wtq_denotation(prediction: str, truths: tuple, right: bool):
  assert one("denotation", prediction, *truths) == right


def test_docowl_takes_the_whole_answer_as_one_value():
  assert one("denotation_due", "a|b", "a", "b") == 0
  assert one("denotation_due", "Peña", "pena") == 1


def test_tabfact():
  for said in ("True", " true.\n", "TRUE"):
    assert one("tabfact", said, "1") == one("tabfact", said, "true") == 1
    assert one("tabfact", said, "0") == 0
  assert one("tabfact", "it is true", "1") == 0
  assert one("tabfact_contains", "it is true", "1") == 1
  assert one("tabfact_contains", "true or false", "1") == 0


def test_tablevqa():
  for text, want in GOLDEN["fintabnet"]["cases"]:
    assert list(table.amounts(text)) == want
  items = [item("a|b", type="vwtq"), item("1", type="vtabfact"),
           item("$5 million", type="fintabnetqa")]
  assert total("tablevqa", ["b||a", "False", "5"], items) == {
      "accuracy": pytest.approx(2 / 3), "vwtq": 1, "vtabfact": 0,
      "fintabnetqa": 1, "fintabnetqa_exact": 0}
  # Its prompts end in "Answer:", which many models say again.
  again = total("tablevqa", ["Answer: b||a", "x", "Answer: $5 million"], items)
  assert again["vwtq"] == again["fintabnetqa_exact"] == 1


def test_vcr_finds_the_stretch():
  phrases = ("the old harbour", "in 1912.")
  assert one("vcr", "It says: the old harbour was built in 1912.",
             *phrases) == 1
  assert one("vcr", "the old harbor was built in 1912.", *phrases) == 0.5
  assert one("vcr", "I'm sorry, the old harbour in 1912.", *phrases) == 0
  items = [item(*phrases), item("x")]
  got = total("vcr", ["the old harbour", "x"], items)
  assert got["exact_match"] == pytest.approx(2 / 3)  # of phrases
  assert 2 / 3 <= got["jaccard"] < 1


def test_gqa():
  assert one("gqa", "Blue.", "blue") == one("gqa_lmms_eval", "Blue!",
                                            "blue") == 1
  assert one("gqa", "blue!", "blue") == 0


@pytest.mark.parametrize("said, letter, leading, infer", [
    ("B", 1, 1, 1), ("B.", 1, 1, 1), ("B. two dogs", 1, 1, 1),
    ("(B)", 0, 0, 1), (" B", 1, 0, 1), ("The answer is B.", 0, 0, 1),
    ("Both A and B", 1, 0, 0), ("two dogs", 0, 0, 1), ("C", 0, 0, 0),
    ("Bees", 1, 0, 0)])
def test_choice_parsers(said: str, letter: int, leading: int, infer: int):
  options = ("a cat", "two dogs", "a tree")
  for name, right in (("letter", letter), ("leading", leading),
                      ("infer", infer)):
    assert one(name, said, "B", options=options) == right, name


def test_refusals_are_no_letter():
  said = "I'm sorry, but without the image provided I choose B"
  assert choice.infer(said, ("x", "y")) == "Z"


def test_circular_evaluation_counts_a_question_once():
  turns = [item("ABCD"[i], options=("w", "x", "y", "z"),
                facts={"group": g, "rotation": i, "size": 4})
           for g in ("1", "2") for i in range(4)]
  said = list("ABCD") + list("ABCA")
  assert total("circular", said, turns) == {
      "circular_accuracy": 0.5, "vanilla_accuracy": 1}
  assert total("circular", list("DABC") * 2, turns)["vanilla_accuracy"] == 0
  # A sample may cut a question's rotations: it is then not counted.
  assert total("circular", said[:6], turns[:6]) == {
      "circular_accuracy": 1, "groups_cut": 1, "vanilla_accuracy": 1}


def test_pairs_of_mmvp():
  pairs = [item("A", options=("x", "y"), facts={"group": str(g), "size": 2})
           for g in (0, 0, 1, 1)]
  assert total("pairs", ["A. x", "A", "A", "B"], pairs) == {
      "pair_accuracy": 0.5, "question_accuracy": 0.75}


@pytest.mark.parametrize("name, bare", [
    ("mmmu", mmmu.Mmmu.bare), ("mmmu_lmms_eval", mmmu.MmmuLmmsEval.bare)])
def test_mmmu_choices(name: str, bare: tuple):
  options = GOLDEN[name]["options"]
  for said, want in GOLDEN[name]["cases"]:
    assert mmmu.parse_choice(said, options, bare) == want, said
    assert one(name, said, want, options=tuple(options)) == 1


@pytest.mark.parametrize("said, right", [
    ("Stephan Van Dam", True), ("the author is stephan van dam.", True),
    ("not the same", False), ("", False)])
def test_demon_takes_the_nearest_choice(said: str, right: bool):
  closed = "not the same", "the same", "Stephan Van Dam", "Sally M. Walker"
  assert one("demon_choice", said, "Stephan Van Dam", closed=closed) == right


def test_demon_choices_that_share_words():
  """By likeness "not the same" is no other choice than itself."""
  right = lambda said, *closed: one("demon_choice", said, closed[-1],
                                    closed=closed)
  assert right("not the same", "the same", "not the same")
  assert not right("the same", "the same", "not the same")
  assert right("b", "a", "b") and not right("a", "a", "b")  # no word is left
  with pytest.raises(InputError, match="'c' is none of the choices"):
    one("demon_choice", "c", "c", closed=("a", "b"))


@pytest.mark.parametrize("said, right", [
    ("Image B", True), ("Image B: the second", True), ("image b.", True),
    ("Image A", False), ("Image B, not Image A", False), ("B", False)])
def test_demon_images(said: str, right: bool):
  assert one("demon_images", said, "Image B") == right


def test_mmmu_draws_the_same_letter_in_every_run():
  draws = [mmmu.parse_choice("?", ["a", "b", "c"], seed=str(n))
           for n in range(20)]
  assert draws == [mmmu.parse_choice("?", ["a", "b", "c"], seed=str(n))
                   for n in range(20)]
  assert set(draws) == set("ABC")


def test_mmmu_open_answers():
  for said, want in GOLDEN["mmmu_open"]["cases"]:
    assert sorted(mmmu.parse_open(said), key=str) == want
  assert one("mmmu", "so it is 1,234.", "1234") == 1
  assert one("mmmu", "the answer is a blue whale", "whale", "fish") == 1
  assert one("mmmu", "it is 3.14159", "3.14") == 1
  assert one("mmmu", "banana", "a") == 0  # no trivial match


def test_pope():
  truths = ["yes", "yes", "no", "no"]
  said = ["Yes, there is.", "There is not. Yes", "no", "A cat"]
  got = total("pope", said, [item(t) for t in truths])
  # Read as yes, no, no, yes: one hit, one false alarm, one miss.
  assert got == {"accuracy": 0.5, "precision": 0.5, "recall": 0.5,
                 "f1": 0.5, "yes_share": 0.5}
  assert total("pope", ["no"] * 4, [item(t) for t in truths]) == {
      "accuracy": 0.5, "precision": 0, "recall": 0, "f1": 0, "yes_share": 0}
  assert one("pope_lmms_eval", "Yes, there is.", "yes") == 0
  assert one("pope_lmms_eval", " Yes\n", "yes") == 1


def test_ocrbench():
  assert one("ocrbench", "It reads CENTRE\nhall", "centre hall", "x") == 1
  formula = {"facts": {"dataset": "HME100k"}}
  assert one("ocrbench", "x ^ {2} + Y", "x^{2}+Y", **formula) == 1
  assert one("ocrbench", "x^{2}+y", "x^{2}+Y", **formula) == 0
  assert one("ocrbench_lmms_eval", "x^{2}+Y", "x^{2}+Y", **formula) == 0
  assert total("ocrbench", ["ab", "c"], [item("a"), item("b")]) == {
      "accuracy": 0.5, "points": 1}


def test_what_needs_a_judge_says_so():
  for name in ("mmvet_unjudged", "capsbench_unjudged"):
    scorer = SCORERS.get(name)()
    assert scorer.protocol.startswith("NOT ") and "judge" in scorer.protocol
    assert "accuracy" not in scorer.headline
  assert one("mmvet_unjudged", "x is -1 or -5", "x=-1<AND>-5<OR>-1 <AND> -5"
             ) == 1
  assert one("mmvet_unjudged", "only -1", "-1<AND>-5") == 0


def test_average_of_the_nine():
  # arXiv 2502.01341v2, Table 1: AlignVLM-3B and -8B.
  row = dict(zip(nine.NINE, (
      79.63, 44.53, 63.49, 35.25, 38.59, 78.51, 71.88, 57.38, 60.10)))
  assert nine.average(row) == pytest.approx(58.81, abs=0.01)
  row = dict(zip(nine.NINE, (
      81.18, 53.75, 63.25, 35.50, 45.31, 83.04, 75.00, 64.60, 64.33)))
  assert nine.average(row) == pytest.approx(62.88, abs=0.01)
  del row["wtq"]
  with pytest.raises(InputError) as error:
    nine.average(row | {"docvpa": 1})
  assert str(error.value) == ("no score for wtq; 'docvpa' is none of the nine;"
                              " did you mean 'docvqa'?")
  assert all(name in SCORERS for names in nine.NINE.values()
             for name in names)


def test_average_of_a_runs_own_results(tmp_path, capsys):
  folder = tmp_path / "eval"
  folder.mkdir()
  for number, (name, forms) in enumerate(nine.NINE.items()):
    (folder / f"{name}.json").write_text(json.dumps(
        {"accuracy": 0.1 * number, "scorer": forms[-1], "n": 1200}))
  assert main(["evaluate", str(tmp_path), "--nine"]) == 0
  told = capsys.readouterr().out
  assert "mean        40.0 %" in told and "1,200 questions" in told
  assert "anls_due (VLMEvalKit: anls_vlmevalkit)" in told
  assert main(["evaluate", str(tmp_path), "--nine", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["average"] == pytest.approx(0.4) and len(found["sets"]) == 9
  (folder / "klc.json").unlink()
  (folder / "wtq.json").write_text('{"accuracy": 1, "scorer": "exact", "n": 1}')
  with pytest.raises(InputError) as error:
    nine.of_run(tmp_path)
  assert "klc.json; align-jax evaluate" in str(error.value)
  assert "the scorer 'exact' (one of denotation" in str(error.value)
