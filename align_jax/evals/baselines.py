"""What can be scored without looking at the picture."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence


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


def exchange(facts: Sequence[dict[str, frozenset[str]]],
             seed: int = 0) -> list[int]:
  """For each image another one that differs from it in every fact.

  Args:
    facts: what each image may show, such as {"shape": {"circle"}, "color":
      {"red", "teal"}}; several values where the data leave it open.
    seed: of the choice.

  Returns:
    The index of the image to show instead, for each image.

  Raises:
    ValueError: an image has no partner that surely differs.
  """
  rng = random.Random(f"exchange/{seed}")
  every = {k: frozenset().union(*(f[k] for f in facts)) for k in facts[0]}
  partners = []
  for i, mine in enumerate(facts):
    others = [j for j, other in enumerate(facts)
              if all(mine[k].isdisjoint(other[k])
                     or (len(mine[k]) > 1 and mine[k] == every[k])
                     for k in mine)]
    if not others:
      shown = {k: "/".join(sorted(v)) for k, v in mine.items()}
      raise ValueError(
          f"image {i} ({shown}) has no partner that differs in "
          f"{' and '.join(mine)}; take more images")
    partners.append(rng.choice(others))
  return partners


def exchange_sets(sizes: Sequence[int], seed: int = 0) -> list[int] | None:
  """For each set of images another one of as many, where no facts are known.

  Another one may by chance be answered alike: a blind score is then too high
  and never too low.

  Args:
    sizes: images of each set; a set of none stays what it is.
    seed: of the choice.

  Returns:
    The index of the set to show instead, for each; None where there are no
    images, or a set is alone in its size.
  """
  alike: dict[int, list[int]] = defaultdict(list)
  for number, size in enumerate(sizes):
    alike[size].append(number)
  partners = list(range(len(sizes)))
  for size, members in alike.items():
    if size and len(members) == 1:
      return None
    random.Random(f"exchange/{seed}/{size}").shuffle(members)
    for mine, other in zip(members, members[1:] + members[:1]):
      partners[mine] = other if size else mine
  return partners if set(alike) != {0} else None
