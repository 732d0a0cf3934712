"""Shares of what the devices could do."""

import time

import jax
import jax.numpy as jnp

from align_jax.bench.cases import Ready
from align_jax.build import param_shapes
from align_jax.plan.chips import chip_named
from align_jax.plan.cost import step_cost, total

CONVENTION = (
    "products of the model alone, 2 a multiplication: forward, once more for "
    "a trained parameter and once for an input that gradients pass; causal "
    "attention half; head on labelled positions; no recomputation")


def flops_of(case: Ready) -> float:
  """Of one step, over all devices, by the plan's convention."""
  shapes = param_shapes(case.parts, case.mesh)
  costs = step_cost(case.config, case.stage, case.parts, shapes,
                    list(case.state.trained))
  return total(costs).model


def peak(devices: int) -> float:
  """Published bf16 FLOP/s of so many; 0 where the chip is not in the table."""
  chip = chip_named(jax.devices()[0].device_kind)
  return chip.peak * devices if chip else 0.0


def measured_peak(dtype: str, devices: int, size: int = 0) -> float:
  """FLOP/s of a plain matrix product on one device, times so many.

  Virtual devices share their processor, and count once.
  """
  size = size or (8192 if jax.default_backend() != "cpu" else 1024)
  x = jnp.ones((size, size), dtype)
  product = jax.jit(lambda a: a @ a)
  product(x).block_until_ready()
  best = float("inf")
  for _ in range(5):
    start = time.perf_counter()
    product(x).block_until_ready()
    best = min(best, time.perf_counter() - start)
  speed = 2 * size ** 3 / best
  return speed if jax.default_backend() == "cpu" else speed * devices
