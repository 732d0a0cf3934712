"""Batches on eight devices."""

import jax
import numpy as np
import pytest

from align_jax.config import DataConfig, MeshConfig
from align_jax.data.batch import batch_spec, local_rows, place
from align_jax.parallel.mesh import make_mesh

CONFIG = DataConfig(rows=8, row_length=6, images_per_row=2)


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  return {name: {} if name == "extras" else rng.integers(
      0, 9, spec.shape).astype(spec.dtype)
          for name, spec in batch_spec(CONFIG, 4).items()}


@pytest.mark.parametrize("axes", [
    {"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2},
    {"replica": 2, "fsdp": 2, "context": 2}, {"data": 1, "tensor": 8}])
def test_rows_are_sharded_and_nothing_else(axes, batch):
  mesh = make_mesh(MeshConfig(**{"data": 1, **axes}))
  placed = place(batch, mesh)
  assert placed.pop("extras") == {}
  shards = np.prod([mesh.shape[a] for a in ("replica", "data", "fsdp")])
  spec = batch_spec(CONFIG, 4)
  for name, array in placed.items():
    assert (array.shape, array.dtype) == (spec[name].shape, spec[name].dtype)
    np.testing.assert_array_equal(array, batch[name])
    assert {s.data.shape for s in array.addressable_shards} == {
        (8 // shards, *array.shape[1:])}
  assert local_rows(mesh, 8) == list(range(8))


def test_rows_must_divide():
  mesh = make_mesh(MeshConfig(data=4, fsdp=2))
  with pytest.raises(ValueError, match="data.rows = 12 .* 8 shards"):
    local_rows(mesh, 12)


def test_a_batch_can_be_lowered_for():
  """The spec is a pytree that jax takes for the batch itself."""
  shapes = jax.eval_shape(lambda b: b["tokens"].sum(), batch_spec(CONFIG, 4))
  assert shapes.shape == ()
