"""Bytes predicted from sizes beside what compilers said, once."""

import pytest

from align_jax.build import build
from align_jax.config import load_config
from align_jax.parallel import topology
from align_jax.plan.check import check, stage_named
from align_jax.plan.chips import CHIPS
from align_jax.plan.memory import _filled
from align_jax.plan.stage import Target, predicted
from align_jax.validate import validate

# What lives at one time by libtpu 0.0.42.1, for the configs as shipped. A
# config that is changed is to be compiled anew.
COMPILED = {
    ("scale/llama31_70b:connector=align", "all"): 28_489_821_728,
    ("scale/llama31_8b_long", "all"): 7_196_564_992,
    ("sea/llava15:llm=vicuna_7b,sea=paper", "align"): 4_062_433_792,
    ("sea/llava15:llm=vicuna_7b,sea=paper", "instruct"): 8_329_149_952,
    ("sea/llava15:llm=vicuna_7b,unfreeze=on,sea=off", "instruct"):
        8_681_148_928,
    ("sea/llava15:llm=gemma_2b,sea=off", "align"): 4_140_637_184,
    ("sea/llava15:llm=phi3_mini,sea=off", "instruct"): 11_268_319_744,
    ("sea/llava15:llm=llama3_8b,sea=off", "align"): 4_860_827_136,
    ("sea/llava15:llm=vicuna_13b,sea=off", "instruct"): 7_440_686_592,
}


@pytest.mark.parametrize("spec, stage", COMPILED)
def test_prediction_is_within_a_twentieth_of_what_was_compiled(spec, stage):
  config = validate(load_config(spec), spec)
  name = config.plan.topology
  chip = CHIPS[topology.parse(name)[0]]
  where = Target(name, topology.size(name), None, chip, chip.hbm)
  axes = check(config, build(config.model), where.count)
  one = stage_named(config, stage)
  plan = predicted(config.of(one), one, where, axes)
  assert plan["predicted_bytes"] == pytest.approx(
      COMPILED[spec, stage], rel=0.05)


@pytest.mark.parametrize("dims, filled", [
    ((), 1),
    ((100,), 100),
    ((8, 128), 1024),
    ((100, 64), 128 * 64),  # either axis may be the fast one
    ((65, 100), 72 * 128),
    ((3, 72, 128), 3 * 72 * 128),
])
def test_arrays_fill_whole_tiles(dims, filled):
  assert _filled(dims, tiled=True) == filled
  assert _filled(dims, tiled=False) <= filled
