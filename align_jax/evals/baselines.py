"""What can be scored without looking at the picture."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np


def majority_answer(answers: Sequence[str]) -> str:
  """The most frequent answer; ties go to the alphabet."""
  counts = Counter(answers)
  return min(counts, key=lambda a: (-counts[a], a))


def question_prior(questions: Sequence[str],
                   answers: Sequence[str]) -> dict[str, str]:
  """The most frequent training answer to each question.

  Ties go to the answer that is more frequent over all questions, then to the
  alphabet, whatever the order of the data.
  """
  overall = Counter(answers)
  counts: dict[str, Counter] = defaultdict(Counter)
  for question, answer in zip(questions, answers):
    counts[question][answer] += 1
  return {q: min(c, key=lambda a: (-c[a], -overall[a], a))
          for q, c in counts.items()}


def exchange(facts: Sequence[dict[str, str]], seed: int = 0) -> np.ndarray:
  """For each image another one that differs from it in every fact.

  Args:
    facts: what each image shows, such as {"shape": .., "color": ..}.
    seed: of the choice.

  Returns:
    i64[images], the index of the image to show instead.

  Raises:
    ValueError: an image has no such partner.
  """
  rng = np.random.default_rng(seed)
  names = sorted(facts[0]) if facts else []
  kinds = np.array([[f[name] for name in names] for f in facts])
  partners = np.empty(len(facts), np.int64)
  for i, kind in enumerate(kinds):
    others = np.flatnonzero((kinds != kind).all(axis=1))
    if not others.size:
      raise ValueError(
          f"image {i} ({facts[i]}) has no partner that differs in "
          f"{' and '.join(names)}; take more images")
    partners[i] = rng.choice(others)
  return partners
