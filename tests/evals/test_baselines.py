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


def test_exchange_differs_in_every_fact_and_is_seeded():
  facts = [{"shape": s, "color": c}
           for s in ("circle", "triangle", "rectangle")
           for c in ("red", "blue", "gray")] * 2
  partners = baselines.exchange(facts, seed=1)
  for mine, other in zip(facts, partners):
    assert mine["shape"] != facts[other]["shape"]
    assert mine["color"] != facts[other]["color"]
  assert (partners == baselines.exchange(facts, seed=1)).all()
  assert (partners != baselines.exchange(facts, seed=2)).any()


def test_exchange_without_a_partner_is_an_error():
  facts = [{"shape": "circle", "color": c} for c in ("red", "blue")]
  with pytest.raises(ValueError, match="image 0 .* has no partner"):
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
