"""Objectives: what a stage trains for.

An objective is a class, made with the run's `Config` and with its options,
`config.objective_options[name]`:

  coupled                       class attribute: whether one sample's loss
                                depends on others of the batch; such a loss
                                is never split into microbatches
  model                         class attribute, if it wants a certain kind of
                                model: "vlm" or "clip"
  extras(config)                class method, if it reads fields of its own in
                                batch["extras"]: {name: shape [B,S,...] and
                                dtype}, declared as a connector's are (see
                                connectors/protocol.py)
  products(config, decoder)     class method, if it wants to say itself what it
                                multiplies for one row (ops/cost.py)
  weight(batch, rng, layout)    -> f32[], how much this batch counts, from it
                                and the draws alone
  (outputs, batch, rng, layout) -> f32[]    the sum, never a mean

The step divides the sum by the weight of the whole global batch.
"""

from typing import Any

from align_jax.config import Config
from align_jax.registry import Registry

OBJECTIVES = Registry("objective", {
    "next_token": "align_jax.objectives.next_token:NextToken",
    "contrastive": "align_jax.objectives.contrastive:Contrastive",
    "cg_vlm": "align_jax.objectives.cg_vlm:CgVlm",
    "patch_cosine": "align_jax.objectives.patch_cosine:PatchCosine",
    "sea": "align_jax.objectives.sea:Sea",
    "sea_soft": "align_jax.objectives.sea_soft:SeaSoft",
    "vlap": "align_jax.objectives.vlap:Vlap",
})


def make_objective(name: str, config: Config, planned: bool = False) -> Any:
  """The objective of that name, with the options that the run gives it.

  Args:
    name: registered.
    config: the run's.
    planned: only to be compiled; one that reads files has a class method
      `planned(config, **options)` that does without.
  """
  kind = OBJECTIVES.get(name)
  make = getattr(kind, "planned", kind) if planned else kind
  return make(config, **config.objective_options.get(name, {}))
