"""Topologies by name, and the devices that libtpu makes of them."""

import importlib.util

import pytest

from align_jax.parallel import topology


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                    reason="libtpu is not installed")
@pytest.mark.parametrize("name", [
    f"{chip}:{shapes[0]}" for chip, shapes in topology.SLICES.items()])
def test_a_chip_is_one_device(name):
  assert len(topology.tpu_devices(name)) == topology.size(name)
