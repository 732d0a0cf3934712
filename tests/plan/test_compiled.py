"""Programs that were compiled before are not compiled again."""

import jax
import jax.numpy as jnp
import pytest

from align_jax.plan import compiled as module
from align_jax.plan import hlo
from align_jax.plan.buffers import live_at_peak
from align_jax.plan.compiled import Compiled, compiled

SQUARE = jax.ShapeDtypeStruct((64, 64), jnp.float32)


def _lowered(factor: float = 2.0):
  return jax.jit(lambda x: (factor * x @ x).sum()).lower(SQUARE)


@pytest.fixture
def calls(monkeypatch):
  """How often the compiler was asked."""
  found = []
  real = module._compile
  monkeypatch.setattr(module, "_compile",
                      lambda lowered: found.append(1) or real(lowered))
  return found


def test_a_program_is_compiled_once_for_a_topology(tmp_path, calls):
  first = compiled(_lowered(), "cpu:1", str(tmp_path))
  again = compiled(_lowered(), "cpu:1", str(tmp_path))
  assert first == again and len(calls) == 1
  assert first.text.startswith("HloModule") and first.seconds > 0
  assert first.arguments == 64 * 64 * 4
  assert first.used >= first.arguments

  compiled(_lowered(3.0), "cpu:1", str(tmp_path))
  compiled(_lowered(), "cpu:2", str(tmp_path))
  assert len(calls) == 3
  compiled(_lowered(), "cpu:1")  # without a folder nothing is kept
  assert len(calls) == 4


def test_a_refusal_is_kept_and_another_error_is_not(tmp_path, monkeypatch):
  def refuses(lowered, **options):
    raise jax.errors.JaxRuntimeError(says)

  monkeypatch.setattr(jax.stages.Lowered, "compile", refuses)
  says = "INTERNAL: no such instruction"
  with pytest.raises(jax.errors.JaxRuntimeError, match="no such"):
    compiled(_lowered(), "cpu:1", str(tmp_path))
  says = "RESOURCE_EXHAUSTED: 40G of 16G\nmore"
  found = compiled(_lowered(), "cpu:1", str(tmp_path))
  assert found.refusal == "RESOURCE_EXHAUSTED: 40G of 16G"
  says = "never asked again"
  assert compiled(_lowered(), "cpu:1", str(tmp_path)) == found


def test_the_report_on_buffers_holds_where_there_is_one():
  found = Compiled("", 100, 90, 80, 70, 1.0)
  assert found.used == 200
  assert Compiled("", 100, 90, 80, 70, 1.0, packed=150).used == 150


def test_what_is_written_in_place_is_counted_once():
  """A donated argument's new value, and a loop's carried arrays."""
  big = jax.ShapeDtypeStruct((256, 256), jnp.float32)

  def step(x, rows):
    def turn(x, i):
      return x.at[i].add(rows[i]), (x[i] * 2).sum()

    x, sums = jax.lax.scan(turn, x, jnp.arange(256))
    return x + 1, sums.sum()

  text = jax.jit(step, donate_argnums=0).lower(big, big).compile().as_text()
  found = live_at_peak(hlo.parse(text))
  assert sum(b.bytes for b in found) < 2 * 256 * 256 * 4
