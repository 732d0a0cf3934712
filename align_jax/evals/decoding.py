"""How answers are written out, beside greedily."""

import dataclasses

from align_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Beam:
  """How to search.

  Attributes:
    size: K.
    repetition_penalty: above 1 makes a token that was generated before less
      likely.
    length_penalty: above 0 prefers long answers, below 0 short ones.
    min_length: an answer has at least so many tokens before its end.
  """
  size: int = 5
  repetition_penalty: float = 1.0
  length_penalty: float = 1.0
  min_length: int = 0

  def __post_init__(self) -> None:
    faults = []
    if self.size < 1:
      faults.append(f"size {self.size} is below 1")
    if self.repetition_penalty <= 0:
      faults.append(f"repetition_penalty {self.repetition_penalty} is not "
                    "above 0")
    if self.min_length < 0:
      faults.append(f"min_length {self.min_length} is below 0")
    if faults:
      raise InputError("beam: " + "; ".join(faults))

  def __str__(self) -> str:
    return (f"beam search, {self.size} beams, repetition penalty "
            f"{self.repetition_penalty:g}, length penalty "
            f"{self.length_penalty:g}"
            + f", at least {self.min_length} token(s)" * bool(self.min_length))


# The published evaluation of SAM (and of InstructBLIP in LAVIS).
SAM_BEAM = Beam(size=5, repetition_penalty=1.5, length_penalty=1.0,
                min_length=1)
