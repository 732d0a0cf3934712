"""Chip facts and the bounds that follow from them, as computed by hand."""

import collections
import itertools

import numpy as np
import pytest

from align_jax.parallel import topology
from align_jax.plan.bounds import bounds, link_rate
from align_jax.plan.chips import CHIPS, chip_named
from align_jax.plan.goals import judge
from align_jax.plan.measure import Collective, Measured


def _gather(groups, wire=1e9, times=1.0):
  return Collective("all-gather", (), wire, wire, np.array(groups), times, (),
                    "")


def _torus(*shape):
  return np.array(list(itertools.product(*map(range, shape))))


@pytest.mark.parametrize("chip, shape, members, rate", [
    ("v5e", (16, 16), range(256), 200e9),  # two rings of two 50 GB/s links
    ("v5e", (4, 4), range(16), 100e9),     # two lines
    ("v5e", (16, 16), range(16), 100e9),   # one ring
    ("v5e", (16, 16), range(8), 50e9),     # half of it is a line
    ("v5p", (8, 8, 8), range(512), 600e9),  # three rings of 100 GB/s links
    ("v5p", (4, 4, 4), range(4), 200e9),
])
def test_a_transfer_has_the_links_of_the_dimensions_it_crosses(
    chip, shape, members, rate):
  places = _torus(*shape)
  found = link_rate(CHIPS[chip], places.max(0) + 1, places,
                    _gather([list(members)]))
  assert found == pytest.approx(rate)


@pytest.mark.parametrize("name", ["v4:2x2x4", "v5e:4x4", "v5p:2x2x4",
                                  "v6e:4x4"])
def test_a_host_feeds_the_chips_of_one_process(name):
  """As libtpu deals them out; a chip may be two devices."""
  pytest.importorskip("libtpu")
  chips = collections.defaultdict(set)
  for device in topology.tpu_devices(name):
    chips[device.process_index].add(tuple(device.coords))
  per_host = CHIPS[topology.parse(name)[0]].per_host
  assert len(chips) == 16 // per_host
  assert {len(places) for places in chips.values()} == {per_host}


def test_the_ceiling_is_model_work_over_the_least_time():
  # v5e: 197 TFLOP at peak is 1 s; 819 GB of traffic another, hidden; 100 GB
  # over 200 GB/s half a second, not hidden.
  seen = Measured(197e12, {}, 819e9, (_gather([range(256)], 50e9, 2),), {}, 0)
  found = bounds(seen, 256 * 150e12, CHIPS["v5e"], _torus(16, 16))
  assert found.compute == found.memory == 1.0
  assert found.interconnect == pytest.approx(0.5)
  assert found.ceiling == pytest.approx(150 / 197 / 1.5)


def test_every_topology_has_a_chip_and_a_source():
  for chip, shapes in topology.SLICES.items():
    facts = CHIPS[chip]
    assert facts.source.startswith("https://") and facts.hbm > 0
    assert all(len(s.split("x")) == facts.torus for s in shapes)
  assert chip_named("NVIDIA H100 80GB HBM3").peak == 989e12
  assert chip_named("TPU v5 lite") is CHIPS["v5e"]
  assert chip_named("cpu") is None


def test_goals_are_judged_by_their_limits():
  stage = dict(
      used_bytes=95.0, peak_bytes=90.0, predicted_bytes=96.0,
      spare_share=0.09, fits=True,
      v_sized_collectives=0, chip="TPU v5e", mfu_ceiling=0.56,
      weights_moved_over_least=1.2, compiled_flops=1.0,
      flops_compiled_over_analytic=1.36, recomputed_share=0.30)
  met = {goal: v.met for goal, v in judge(stage).items()}
  assert met == {"T1": False, "T2": True, "T3": False, "T4": False,
                 "T5": False}
  better = stage | dict(spare_share=0.1, weights_moved_over_least=1.1,
                        flops_compiled_over_analytic=1.35,
                        predicted_bytes=94.0)
  assert all(v.met for v in judge(better).values())
  elsewhere = judge(stage | dict(chip="processor"))
  assert {v.met for g, v in elsewhere.items() if g != "T1"} == {None}
  moved = judge(better | dict(v_sized_collectives=1))
  assert moved["T1"].met is False
