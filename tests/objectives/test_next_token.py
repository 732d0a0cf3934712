"""The next-token loss is that of the decoder's own logits."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.config import Config, DataConfig, ModelConfig
from align_jax.objectives.next_token import NextToken
from align_jax.parallel.layout import Layout
from tests.tiny import DECODER, random_batch, tiny_vlm

CONFIG = Config("", ModelConfig(), DataConfig(row_length=16), ())


@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_the_logits_are_capped_as_the_decoder_caps_them(cap: float) -> None:
  decoder = dataclasses.replace(DECODER, logit_soft_cap=cap).make()
  batch = random_batch(rows=2)
  rng = np.random.default_rng(0)
  outputs = dict(
      hidden=rng.normal(size=(2, 16, DECODER.width)).astype(np.float32),
      head_vd=rng.normal(size=(64, DECODER.width)).astype(np.float32),
      logit_soft_cap=cap)
  logits = decoder.apply(
      {"params": {"embed_vd": outputs["head_vd"],
                  "final_norm_d": jnp.ones(DECODER.width)}},
      outputs["hidden"], method="logits")
  likely = np.take_along_axis(
      np.asarray(jax.nn.log_softmax(logits)), batch["targets"][..., None], -1)
  got = NextToken(CONFIG)(outputs, batch, None, Layout())
  np.testing.assert_allclose(
      got, -(likely[..., 0] * batch["loss_weights"]).sum(), rtol=1e-5)


def test_a_model_tells_its_cap() -> None:
  model = tiny_vlm()
  model = model.clone(decoder=dataclasses.replace(
      DECODER, logit_soft_cap=3.0).make())
  batch = random_batch(rows=1)
  told: dict[str, Any] = {}

  def run(key: jax.Array) -> jax.Array:
    out, _ = model.init_with_output(key, batch)
    told["cap"] = out["logit_soft_cap"]
    return out["hidden"]

  jax.eval_shape(run, jax.random.key(0))
  assert told["cap"] == 3.0
