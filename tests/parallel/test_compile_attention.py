"""Attention's TPU form compiles for an absent v5e slice, backward too."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from align_jax.config import MeshConfig
from align_jax.ops.attention import attention
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.parallel.topology import tpu_devices


@pytest.fixture(autouse=True)
def the_precision_that_users_have():
  """The suite's "highest" is for comparing numbers; kernels refuse it of
  bf16."""
  with jax.default_matmul_precision("default"):
    yield


@pytest.mark.slow
@pytest.mark.parametrize("shape,width,length,options", [
    (dict(fsdp=4), 128, 1024, {}),
    (dict(fsdp=2, tensor=2), 64, 1152, dict(window=256, soft_cap=50.0)),
    (dict(tensor=2, context=2), 128, 8192, dict(balanced=True)),
    (dict(context=4), 128, 16_384, dict(balanced=True)),
    (dict(fsdp=4), 72, 1025, dict(causal=False, packed=False)),  # a tower
])
def test_compiles_for_v5e_without_queries_by_keys(
    shape, width, length, options):
  mesh = make_mesh(MeshConfig(**{"data": 1} | shape), tpu_devices("v5e:2x2"))
  layout = Layout(mesh)
  rows, heads, groups = 4, 8, 4
  rule = layout.spec("blh.")
  array = lambda h: jax.ShapeDtypeStruct(
      (rows, length, h, width), jnp.bfloat16,
      sharding=NamedSharding(mesh, P(rule[0], None, rule[2])))
  ids = jax.ShapeDtypeStruct((rows, length), jnp.int32,
                             sharding=NamedSharding(mesh, P(rule[0])))
  options = dict(causal=True, packed=True) | options

  def loss(q, k, v, ids, positions):
    where = dict(q_segments=ids, kv_segments=ids) if options["causal"] else {}
    return attention(
        q, k, v, **where, q_positions=positions, kv_positions=positions,
        layout=layout, **options).astype(jnp.float32).sum()

  text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(
      array(heads), array(groups), array(groups), ids, ids).compile().as_text()
  assert "tpu_custom_call" in text
  assert f"{length},{length}]" not in text
  if "context" in shape:
    assert "all-gather" in text
