"""Attention against the definition, written as loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.ops.attention import attention


def _slow(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray,
          soft_cap: float | None = None) -> np.ndarray:
  """One query at a time, f64."""
  out = np.zeros(q.shape)
  group = q.shape[2] // k.shape[2]
  for b, i, h in np.ndindex(*q.shape[:3]):
    keys = np.flatnonzero(mask[b, i])
    if not len(keys):
      continue
    logits = k[b, keys, h // group] @ q[b, i, h] / np.sqrt(q.shape[-1])
    if soft_cap:
      logits = soft_cap * np.tanh(logits / soft_cap)
    p = np.exp(logits - logits.max())
    out[b, i, h] = (p / p.sum()) @ v[b, keys, h // group]
  return out


@pytest.fixture
def qkv() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  rng = np.random.default_rng(0)
  return (2 * rng.normal(size=(2, 5, 4, 3)).astype(np.float32),
          rng.normal(size=(2, 7, 2, 3)).astype(np.float32),
          rng.normal(size=(2, 7, 2, 3)).astype(np.float32))


def test_everything_attends_to_everything(qkv: tuple) -> None:
  np.testing.assert_allclose(
      attention(*qkv), _slow(*qkv, np.ones((2, 5, 7), bool)), atol=1e-5)


def test_segments_and_causality(qkv: tuple) -> None:
  q_segments = np.array([[1, 1, 2, 2, 0], [0, 3, 3, 3, 1]])
  q_positions = np.array([[0, 3, 0, 1, 0], [0, 0, 1, 2, 5]])
  kv_segments = np.array([[1, 1, 1, 1, 2, 2, 0], [3, 3, 3, 0, 0, 0, 0]])
  kv_positions = np.array([[0, 1, 2, 3, 0, 1, 0], [0, 1, 2, 0, 0, 0, 0]])
  mask = ((q_segments[:, :, None] == kv_segments[:, None])
          & (q_segments[:, :, None] > 0)
          & (kv_positions[:, None] <= q_positions[:, :, None]))
  assert not mask[1, 4].any() and q_segments[1, 4]
  got = attention(*qkv, q_segments=q_segments, kv_segments=kv_segments,
                  q_positions=q_positions, kv_positions=kv_positions,
                  causal=True)
  np.testing.assert_allclose(got, _slow(*qkv, mask), atol=1e-5)
  assert (np.asarray(got)[~mask.any(-1)] == 0).all()


@pytest.mark.parametrize("window", [0, 1, 2, 3, 9])
def test_a_window_hides_what_is_far(window: int) -> None:
  """The same for a number and for a traced scalar; padding breaks nothing."""
  rng = np.random.default_rng(1)
  q, k, v = (rng.normal(size=(2, 8, h, 3)).astype(np.float32)
             for h in (4, 2, 2))
  segments = np.array([[1] * 8, [0, 1, 1, 1, 1, 2, 2, 0]])
  positions = np.array([[*range(8)], [0, 0, 1, 2, 3, 0, 1, 0]])
  behind = positions[:, :, None] - positions[:, None]
  mask = ((segments[:, :, None] == segments[:, None])
          & (segments[:, :, None] > 0)
          & (behind >= 0) & (behind < (window or 99)))
  where = dict(q_segments=segments, kv_segments=segments,
               q_positions=positions, kv_positions=positions, causal=True)
  want = _slow(q, k, v, mask)
  np.testing.assert_allclose(attention(q, k, v, window=window, **where), want,
                             atol=1e-5)
  traced = jax.jit(lambda w: attention(q, k, v, window=w, **where))
  np.testing.assert_allclose(traced(jnp.int32(window)), want, atol=1e-5)


def test_a_soft_cap_bends_the_logits(qkv: tuple) -> None:
  everything = np.ones((2, 5, 7), bool)
  want = _slow(*qkv, everything, soft_cap=1.5)
  np.testing.assert_allclose(attention(*qkv, soft_cap=1.5), want, atol=1e-5)
  assert np.abs(want - _slow(*qkv, everything)).max() > 0.1


def test_gradients_are_finite_where_nothing_is_attended(qkv: tuple) -> None:
  segments = jnp.zeros((2, 5), int)
  grads = jax.grad(lambda q: (attention(
      q, *qkv[1:], q_segments=segments,
      kv_segments=jnp.ones((2, 7), int)) ** 2).sum())(qkv[0])
  assert (np.asarray(grads) == 0).all()


def test_softmax_is_f32_whatever_the_dtype(qkv: tuple) -> None:
  q, k, v = (x.astype(jnp.bfloat16) for x in qkv)
  jaxpr = str(jax.make_jaxpr(attention)(q, k, v))
  assert "bf16" not in [line.split("=")[0] for line in jaxpr.splitlines()
                        if " exp " in line][0]
  assert attention(q, k, v).dtype == jnp.bfloat16


@pytest.mark.parametrize("change,says", [
    ({"causal": True}, "needs q_positions and kv_positions"),
    ({"q_segments": np.ones((2, 5))}, "both q_segments and kv_segments"),
    ({"window": 2}, "a window needs causal attention"),
])
def test_missing_arguments(qkv: tuple, change: dict, says: str) -> None:
  with pytest.raises(ValueError, match=says):
    attention(*qkv, **change)


def test_heads_that_do_not_divide(qkv: tuple) -> None:
  q, k, v = qkv
  with pytest.raises(ValueError, match="3 query heads .* 2 key-value"):
    attention(q[:, :, :3], k, v)
