"""The benchmark harness: pairing, figures, the verb."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import bench
from align_jax.bench import vocab_mix
from align_jax.bench.figure import Figure
from align_jax.bench.report import line
from align_jax.bench.timing import Timings, paired, temporaries
from align_jax.cli.main import main


def test_variants_run_in_turns_and_the_order_rotates():
  calls = []
  times = paired({n: lambda n=n: calls.append(n) for n in "abc"}, rounds=4,
                 warm=1)
  assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"
  assert times.rounds == 4


def test_a_ratio_is_the_median_of_paired_ratios():
  """A slow spell that hits both of a pair does not move it."""
  times = Timings({"ours": np.array([1.0, 2.0, 30.0]),
                   "theirs": np.array([2.0, 2.0, 20.0])})
  found = times.ratio("ours", "theirs")
  assert found["value"] == 1.0 and found["rounds"] == 3
  assert found["spread"] == (0.75, 1.25)
  assert found["parts"] == {"ours_seconds": 2.0, "theirs_seconds": 2.0}


def test_a_rate_has_the_quartiles_of_its_own_rounds():
  times = Timings({"ours": np.array([1.0, 2.0, 4.0])})
  found = times.rate("ours", 8.0)
  assert found["value"] == 4.0 and found["rounds"] == 3
  assert found["spread"] == (3.0, 6.0)
  assert found["parts"] == {"ours_seconds": 2.0}


def test_what_was_timed_once_says_that_it_has_no_spread():
  once = Figure("k", "a / b", 1.0, "N=1", "f32", rounds=1)
  assert "one round, so no spread" in line(once)
  twice = Figure("k", "a / b", 1.0, "N=1", "f32", rounds=2, spread=(1, 2))
  assert "median of 2 rounds, quartiles 1 to 2" in line(twice)


@pytest.mark.parametrize("value,higher,met,failed", [
    (0.9, False, True, False), (1.1, False, False, False),
    (1.3, False, False, True), (0.9, True, False, True),
    (1.3, True, True, False)])
def test_goal_and_fail_line(value, higher, met, failed):
  goal, limit = (1.0, 1.25) if not higher else (1.2, 1.0)
  figure = Figure("k", "a / b", value, "N=1", "f32", goal=goal, limit=limit,
                  higher=higher)
  assert figure.met is met and figure.failed is failed
  assert ("FAILED" in line(figure)) == failed
  assert figure.as_json()["ratio"] == value


def test_a_figure_without_a_goal_cannot_fail():
  figure = Figure("k", "a", 3.0, "N=1", "f32", unit="seconds")
  assert figure.met is None and not figure.failed
  assert figure.as_json()["value"] == 3.0


def test_temporaries_are_those_of_the_compiled_program():
  square = lambda x: jax.nn.softmax(x @ x.T) @ x
  assert temporaries(square, jnp.ones((256, 8))) >= 256 * 256 * 4
  assert temporaries(lambda x: x.sum(), jnp.ones((256, 8))) < 256 * 256


def test_h3_is_measured_at_its_own_sizes_and_lines(monkeypatch):
  assert vocab_mix.PAGE == (9 * 729, 128_256, 3072)
  assert vocab_mix.PAGES == (4 * 9 * 729, 128_256, 3072)
  monkeypatch.setattr(vocab_mix, "PAGE", (512, 4096, 16))
  monkeypatch.setattr(vocab_mix, "PAGES", (1024, 4096, 16))
  found = {f.key: f for f in vocab_mix.large(bench.Options(rounds=3),
                                             "float32")}
  assert {k: f.goal for k, f in found.items()} == {
      "h3": 1.25, "h3_speed": 400, "h3_memory": 10, "h3_pages": None}
  speed = found["h3_speed"]
  assert speed.value == pytest.approx(
      14 * 512 * 4096 * 16 / 1e12 / speed.parts["stream_seconds"])
  assert speed.spread[0] <= speed.value <= speed.spread[1]
  assert found["h3_memory"].value > 1
  assert found["h3_pages"].shapes == "N=1024 V=4096 D=16"


def _small(options):
  """One third."""
  yield Figure("c99_time", "a / b", 1 / 3, "N=3", "float32",
               goal=1.0, rounds=options.rounds, spread=(0.3, 0.4))


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setitem(bench.BENCHMARKS._entries, "small", _small)


def test_json_says_where_how_often_and_how_far_apart(small, capfd):
  assert main(["bench", "small", "--rounds", "7", "--json"]) == 0
  found = json.loads(capfd.readouterr().out)
  assert found["c99_time"] == {
      "ratio": 1 / 3, "met": True, "failed": False, "what": "a / b",
      "shapes": "N=3", "dtype": "float32", "unit": "ratio", "goal": 1.0,
      "limit": None, "higher": False, "rounds": 7, "spread": [0.3, 0.4],
      "parts": {}, "flops": ""}
  assert found["about"]["devices"] == 8 and found["about"]["versions"]["jax"]


def test_without_a_name_the_benchmarks_are_listed(small, capsys):
  assert main(["bench"]) == 0
  out = capsys.readouterr().out
  assert "One third." in out and "chunked_loss" in out


def test_unknown_names_are_answered_together(small, capsys):
  assert main(["bench", "smal", "nothing_like_it"]) == 2
  said = capsys.readouterr().err
  assert "did you mean 'small'?" in said and "nothing_like_it" in said
