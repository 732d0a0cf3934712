"""Meshes and partition rules: what lies where, and what is refused."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from align_jax.config import MeshConfig
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import inference_mesh, make_mesh, mesh_shape
from align_jax.parallel.rules import (
  check_sharded,
  spec_for,
  table,
  unsharded_share,
)

AXES = dict(replica=1, data=2, fsdp=2, tensor=2, context=1)


def _shape(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_minus_one_takes_what_is_left():
  assert mesh_shape(MeshConfig(data=-1, fsdp=2), 8) == (1, 4, 2, 1, 1)


@pytest.mark.parametrize("config,words", [
    (MeshConfig(data=3), "needs 3 devices, there are 8"),
    (MeshConfig(data=-1, fsdp=3), "multiple of 3 devices, there are 8"),
    (MeshConfig(data=-1, fsdp=-1), "one of them may be -1"),
    (MeshConfig(data=0), "at least 1"),
])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(config, words):
  with pytest.raises(ValueError, match=words):
    mesh_shape(config, 8)


def test_a_fixed_mesh_takes_the_first_devices(monkeypatch):
  small = MeshConfig(data=2, tensor=2)
  mesh = make_mesh(small)
  assert list(mesh.devices.flat) == jax.devices()[:4]
  with pytest.raises(ValueError, match="needs 4 devices, there are 8"):
    make_mesh(small, jax.devices())
  with pytest.raises(ValueError, match="needs 16 devices, there are 8"):
    make_mesh(MeshConfig(data=16))
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match="needs 4 devices, there are 8"):
    make_mesh(small)


@pytest.mark.parametrize("path,shape,want", [
    ("decoder/embed_vd", (64, 32), P("tensor", "fsdp")),
    ("decoder/head_vd", (64, 32), P("tensor", "fsdp")),
    ("connector/w2_vd", (64, 32), P("tensor", "fsdp")),
    ("decoder/layers/q_dhk", (3, 32, 4, 8), P(None, "fsdp", "tensor")),
    ("decoder/layers/down_fd", (3, 64, 32), P(None, "tensor", "fsdp")),
    ("decoder/layers/attn_norm_d", (3, 32), P()),
    ("decoder/final_norm_d", (32,), P()),
    ("decoder/embed_vd", (63, 32), P(None, "fsdp")),
    ("decoder/layers/k_dgk", (3, 32, 1, 8), P(None, "fsdp")),
    ("tower/layers/out_cc", (3, 32, 32), P(None, "fsdp")),
])
def test_a_parameters_letters_say_where_it_lies(path, shape, want):
  assert spec_for(path, shape, AXES) == want


def test_too_much_unsharded_is_refused_by_name():
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  shapes = {"decoder/odd_vd": _shape(63, 31), "decoder/embed_vd": _shape(8, 8)}
  assert unsharded_share(shapes, mesh) > 0.9
  with pytest.raises(ValueError, match="decoder/odd_vd"):
    check_sharded(shapes, mesh)
  assert "unsharded" in table(shapes, mesh)


def test_constrain_leaves_an_axis_that_does_not_divide():
  mesh = make_mesh(MeshConfig(data=8))
  with jax.set_mesh(mesh):
    y = jax.jit(lambda x: Layout(mesh).constrain(x, "bl."))(
        jnp.ones((3, 4, 5)))
  assert y.shape == (3, 4, 5)


def test_constrain_refuses_a_wrong_number_of_axes():
  mesh = make_mesh(MeshConfig(data=8))
  with pytest.raises(ValueError, match="axes 'bl' for an array"):
    Layout(mesh).constrain(jnp.ones((8, 2, 2)), "bl")


@pytest.mark.parametrize(
    "kv_heads,want", [(8, (1, 8)), (2, (4, 2)), (3, (8, 1))])
def test_generation_is_tensor_parallel_as_far_as_the_kv_heads_go(
    kv_heads, want):
  shape = inference_mesh(kv_heads).shape
  assert (shape["data"], shape["tensor"]) == want
  assert shape["fsdp"] == 1
