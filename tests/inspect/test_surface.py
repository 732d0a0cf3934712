"""The surface over l and k shows each cell that ran, and how sure it is."""

import io

import numpy as np
from PIL import Image

from align_jax.inspect.surface import points, surface


def results(arms: dict[str, list[float]]) -> dict:
  cells = {f"{arm}-{seed}": {"arm": arm, "seed": seed,
                             "figures": {"accuracy": value}}
           for arm, values in arms.items()
           for seed, value in enumerate(values)}
  return {"name": "mini", "metric": "accuracy", "cells": cells}


ARMS = {"sam": [0.5, 0.6], "self": [0.9], "sam_3_3": [0.4],
        "sam_12_12": [0.3, 0.35], "sam_3_12": [0.7], "vpg_c": [0.2]}


def test_points_are_the_arms_own_cells():
  assert points(results(ARMS), "sam", (3, 9)) == {
      (3, 9): [0.5, 0.6], (3, 3): [0.4], (12, 12): [0.3, 0.35],
      (3, 12): [0.7]}


def test_it_is_drawn_once_there_is_something_to_draw():
  assert surface(results({"sam": [0.5], "sam_3_3": [0.4]})) is None
  drawn = surface(results(ARMS))
  assert drawn == surface(results(ARMS))
  pixels = np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB"), int)
  # (12, 12) alone has a ring: no odd layer from 12 to 12.
  crimson = (np.abs(pixels - (220, 20, 60)).sum(-1) < 30).sum()
  assert crimson > 30
  looking = {k: v for k, v in ARMS.items() if k != "sam_12_12"}
  pixels = np.asarray(Image.open(io.BytesIO(
      surface(results(looking | {"sam_9_12": [0.5]})))).convert("RGB"), int)
  assert (np.abs(pixels - (220, 20, 60)).sum(-1) < 30).sum() == 0


def test_points_on_one_line_are_drawn_too():
  assert surface(results({"sam_3_3": [0.4], "sam_6_6": [0.5],
                          "sam_9_9": [0.5]}))
