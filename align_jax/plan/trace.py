"""Matrix products of a function, by tracing it: nothing has to be declared.

Every product of the traced program is charged to the parameter that is one of
its factors, found by following each value back to the inputs it was made of.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from align_jax.ops.cost import Product

_PARAM, _DATA = "param", "data"


def traced(fn: Callable[..., Any], params: dict[str, Any],
           *data: Any) -> list[Product]:
  """Products of `fn(params, *data)`, in the order of the program.

  Args:
    fn: of flat parameters and any trees of data; what it returns alone is
      computed, so it should return what is used.
    params: {path: shape and dtype}.
    *data: trees of shapes and dtypes.

  Returns:
    One Product a parameter and place in the program. A product between
    values that both hang on data, or on no parameter, has param "".
  """
  closed = jax.make_jaxpr(fn)(params, *data)
  paths = sorted(params)  # the order in which a dict is flattened
  inputs = [frozenset([(_PARAM, p)]) for p in paths]
  inputs += [frozenset([(_DATA, "")])] * (len(closed.jaxpr.invars)
                                         - len(paths))
  found: list[Product] = []
  _walk(_needed(closed.jaxpr), inputs, 1.0, found)
  return found


def _needed(jaxpr: core.Jaxpr) -> core.Jaxpr:
  """The program without what its results do not need."""
  from jax.interpreters import partial_eval as pe

  return pe.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars),
                      instantiate=True)[0]


def _walk(jaxpr: core.Jaxpr, inputs: list[frozenset], times: float,
          found: list[Product]) -> list[frozenset]:
  """Adds the products of a program; what each of its results is made of."""
  made: dict[Any, frozenset] = dict(zip(jaxpr.invars, inputs))
  of = lambda v: (frozenset() if isinstance(v, core.Literal)
                  else made.get(v, frozenset()))
  for eqn in jaxpr.eqns:
    operands = [of(v) for v in eqn.invars]
    every = frozenset().union(*operands)
    results = [every] * len(eqn.outvars)
    if eqn.primitive.name == "dot_general":
      found.append(Product(times * _dot(eqn), _factor(operands)))
    elif eqn.primitive.name == "conv_general_dilated":
      found.append(Product(times * _conv(eqn), _factor(operands)))
    elif eqn.primitive.name == "pallas_call":
      estimate = eqn.params.get("cost_estimate")
      if estimate is not None:
        found.append(Product(times * estimate.flops, _factor(operands[:2])))
    elif eqn.primitive.name == "cond":
      results = _branches(eqn, operands[1:], times, found)
    else:
      inner = _inner(eqn)
      if inner is not None:
        turns = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        # A loop's carry is made of its first value and of all it has met.
        if eqn.primitive.name in ("scan", "while"):
          operands = [o | every if i >= eqn.params.get("num_consts", 0)
                      and i < eqn.params.get("num_consts", 0)
                      + eqn.params.get("num_carry", len(operands)) else o
                      for i, o in enumerate(operands)]
        given = operands[len(operands) - len(inner.invars):]
        out = _walk(inner, given, times * turns, found)
        results = (out + results)[:len(results)] if len(
            out) == len(results) else results
    made.update(zip(eqn.outvars, results))
  return [of(v) for v in jaxpr.outvars]


def _branches(eqn: Any, operands: list[frozenset], times: float,
              found: list[Product]) -> list[frozenset]:
  """The dearest branch is taken to be the one that runs."""
  tried = []
  for branch in eqn.params["branches"]:
    products: list[Product] = []
    out = _walk(branch.jaxpr, operands, times, products)
    tried.append((sum(p.flops for p in products), products, out))
  _, products, out = max(tried, key=lambda t: t[0])
  found += products
  return out


def _inner(eqn: Any) -> core.Jaxpr | None:
  """The program that an equation calls, if it calls one."""
  for name in ("jaxpr", "call_jaxpr", "fun_jaxpr", "body_jaxpr"):
    inner = eqn.params.get(name)
    if inner is not None:
      return inner.jaxpr if hasattr(inner, "jaxpr") else inner
  return None


def _factor(operands: list[frozenset]) -> str:
  """The parameter that is a whole factor; "" where there is none."""
  sides = [{p for kind, p in o if kind == _PARAM} if o and all(
      kind == _PARAM for kind, _ in o) else set() for o in operands[:2]]
  alone = [side for side in sides if side]
  return min(alone[0]) if len(alone) == 1 else ""


def _dot(eqn: Any) -> float:
  left, right = (v.aval.shape for v in eqn.invars[:2])
  (_, contracted), (_, batch) = eqn.params["dimension_numbers"]
  free = [n for i, n in enumerate(right) if i not in (*contracted, *batch)]
  return 2.0 * math.prod(left) * math.prod(free)


def _conv(eqn: Any) -> float:
  out, kernel = eqn.outvars[0].aval.shape, eqn.invars[1].aval.shape
  numbers = eqn.params["dimension_numbers"]
  per_output = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
  return 2.0 * math.prod(out) * per_output
