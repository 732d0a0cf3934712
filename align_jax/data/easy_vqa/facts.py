"""What easy-VQA's questions say about their images.

Each image shows one shape in one colour. The package has no table of them,
but its questions and answers determine both for nearly every image:

  what is the blue shape? circle              blue, circle
  is there a teal shape? no                   not teal
  does the image not contain a circle? no     circle
"""

from collections.abc import Sequence

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")


def question_type(question: str, answer: str) -> str:
  """"yes/no", "shape" or "color".

  Raises:
    ValueError: the answer is none of the data set's.
  """
  if answer in ("yes", "no"):
    return "yes/no"
  if answer in SHAPES:
    return "shape"
  if answer in COLORS:
    return "color"
  raise ValueError(f"{answer!r}, the answer to {question!r}, is not one of "
                   f"yes, no, {', '.join(SHAPES + COLORS)}")


def derive(questions: Sequence[str],
           answers: Sequence[str]) -> tuple[str, str]:
  """(shape, color) of an image; "" for what its questions leave open.

  Raises:
    ValueError: the answers contradict each other.
  """
  held: set[str] = set()
  excluded: set[str] = set()
  for question, answer in zip(questions, answers):
    words = question.rstrip("?").split()
    named = [w for w in words if w in SHAPES + COLORS]
    if question_type(question, answer) != "yes/no":
      held.update(named, [answer])
    elif (answer == "yes") != ("not" in words or "no" in words):
      held.update(named)
    else:
      excluded.update(named)
  facts = []
  for kind in (SHAPES, COLORS):
    true = [w for w in kind if w in held]
    open_ = [w for w in kind if w not in excluded]
    if len(true) > 1 or set(true) & excluded or not open_:
      raise ValueError(f"contradictory answers: {true or open_} of {kind}")
    known = true or (open_ if len(open_) == 1 else [])
    facts.append(known[0] if known else "")
  return facts[0], facts[1]
