"""What can be scored blind, on hand-made and on real questions."""

import pytest

from align_jax.evals import baselines


def test_majority_and_ties():
  assert baselines.majority_answer(["no", "yes", "yes"]) == "yes"
  assert baselines.majority_answer(["yes", "no"]) == "no"


def test_question_prior():
  prior = baselines.question_prior(
      ["a?", "a?", "a?", "b?"], ["x", "y", "y", "z"])
  assert prior == {"a?": "y", "b?": "z"}


def _facts(shape, color):
  return {"shape": frozenset(shape.split()), "color": frozenset(color.split())}


def test_exchange_differs_in_every_fact_and_is_seeded():
  facts = [_facts(s, c) for s in ("circle", "triangle", "rectangle")
           for c in ("red", "blue", "gray")] * 2
  facts.append(_facts("circle", "red blue"))  # its questions leave that open
  partners = baselines.exchange(facts, seed=1)
  for mine, other in zip(facts, partners):
    assert mine["shape"].isdisjoint(facts[other]["shape"])
    assert mine["color"].isdisjoint(facts[other]["color"])
    assert other != len(facts) - 1 or "gray" in mine["color"]
  assert partners == baselines.exchange(facts, seed=1)
  assert partners != baselines.exchange(facts, seed=2)


def test_what_is_wholly_open_need_not_differ():
  facts = [_facts("circle", "red"), _facts("triangle", "blue"),
           _facts("circle triangle", "red")]
  assert baselines.exchange(facts) == [1, 0, 1]


def test_exchange_without_a_partner_is_an_error():
  facts = [_facts("circle", c) for c in ("red", "blue")]
  with pytest.raises(ValueError, match="image 0 .*circle.* has no partner"):
    baselines.exchange(facts)


def test_official_split_has_the_known_priors():
  easy_vqa = pytest.importorskip("easy_vqa")
  questions, answers, _ = easy_vqa.get_train_questions()
  test_questions, test_answers, _ = easy_vqa.get_test_questions()
  prior = baselines.question_prior(questions, answers)
  right = [prior[q] == a for q, a in zip(test_questions, test_answers)]
  assert round(100 * sum(right) / len(right), 1) == 67.0
  majority = baselines.majority_answer(answers)
  share = test_answers.count(majority) / len(test_answers)
  assert round(100 * share, 1) == 37.3
