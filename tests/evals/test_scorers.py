"""The rule that turns an answer into right or wrong."""

import pytest

from align_jax.evals import scorers


@pytest.mark.parametrize("prediction, truth, right", [
    ("Yes.", "yes", True),
    (" blue\n", "blue", True),
    ("a  Blue circle!", "a blue circle", True),
    ("yes it is", "yes", False),  # no credit for containing the answer
    ("", "no", False),
])
def test_exact_match(prediction: str, truth: str, right: bool):
  assert scorers.exact_match(prediction, truth) is right


def test_every_scoring_names_its_protocol():
  assert set(scorers.PROTOCOLS) == {"generate", "likelihood"}
