"""What a module says of its own matrix products, so that they can be counted.

A tower, a connector, a decoder or an objective may have `products(...)`,
which lists them in the order of the forward pass. One that has none is
counted by tracing it (plan/cost.py), so a new one costs nothing to plan.
"""

from typing import NamedTuple


class Product(NamedTuple):
  """Products of a forward pass, for one image or one row.

  Attributes:
    flops: that the result needs, 2 for a multiplication with its addition.
    param: path of the parameter that is one factor, within its part, or from
      the root with a leading "/"; "" where both factors are activations.
    layer: of the stack that the parameter is in; None outside of stacks.
    masked: FLOPs that the plain form does beside, for results that are then
      masked: the other half of causal attention.
    again: FLOPs that its own backward pass computes once more, whatever the
      policy of rematerialisation.
    fused: of one kernel, which a policy repeats as a whole or not at all.
  """
  flops: float
  param: str = ""
  layer: int | None = None
  masked: float = 0.0
  again: float = 0.0
  fused: bool = False
