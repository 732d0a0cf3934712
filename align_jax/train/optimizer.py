"""AdamW with a peak rate per parameter and one schedule a stage."""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from align_jax.config import StageConfig
from align_jax.train.select import base

Schedule = Callable[[jax.Array], jax.Array]


def schedule(stage: StageConfig) -> Schedule:
  """Step of the stage -> share of the peak rate, in [0, 1].

  A linear warm-up from 1/warmup, so that no step is wasted at rate zero; then
  constant, or down to zero at the stage's last step.
  """
  warmup = (math.ceil(stage.warmup * stage.steps) if stage.warmup < 1
            else round(stage.warmup))
  rest = max(stage.steps - warmup, 1)

  def share(step: jax.Array) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    up = (step + 1) / max(warmup, 1)
    done = jnp.clip((step - warmup) / rest, 0, 1)
    down = {"constant": jnp.ones_like(done), "linear": 1 - done,
            "cosine": 0.5 * (1 + jnp.cos(jnp.pi * done))}[stage.schedule]
    return jnp.where(step < warmup, jnp.minimum(up, 1), down)

  return share


def decays(key: str, shape: tuple[int, ...]) -> bool:
  """Weight decay is for matrices: not for scales, biases, single vectors.

  An attention's bias has two axes, heads and head width, hence the name.
  """
  *above, name = base(key).split("/")
  stacked = "layers" in above
  return len(shape) - stacked >= 2 and "bias" not in name.split("_")


def make_optimizer(stage: StageConfig,
                   rates: Mapping[str, float]) -> optax.GradientTransformation:
  """Clipping by the global norm, Adam's moments, decay, rates.

  Args:
    stage: of the run.
    rates: trainable's key -> peak learning rate. An update may be given
      others, `rates=`, which may be traced.
  """
  parts = []
  if stage.clip_norm:
    parts.append(optax.clip_by_global_norm(stage.clip_norm))
  parts.append(optax.scale_by_adam(b1=stage.b1, b2=stage.b2,
                                   mu_dtype=jnp.dtype(stage.moment_dtype)))
  if stage.weight_decay:
    parts.append(optax.add_decayed_weights(
        stage.weight_decay,
        mask=lambda params: {k: decays(k, p.shape)
                             for k, p in params.items()}))
  parts.append(_scale_by_rates(rates, schedule(stage)))
  return optax.chain(*parts)


def _scale_by_rates(own: Mapping[str, float], share: Schedule,
                    ) -> optax.GradientTransformationExtraArgs:

  def init(params: optax.Params) -> optax.ScaleByScheduleState:
    del params
    return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

  def update(updates: optax.Updates, state: optax.ScaleByScheduleState,
             params: optax.Params | None = None, *,
             rates: Mapping[str, jax.Array] | None = None, **others: object):
    del params, others
    rates, now = rates or own, share(state.count)
    updates = {k: -rates[k] * now * u for k, u in updates.items()}
    return updates, optax.ScaleByScheduleState(count=state.count + 1)

  return optax.GradientTransformationExtraArgs(init, update)
