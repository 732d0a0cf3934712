"""One training step, compiled once a stage.

  batch -> total weights -> A microbatches of gradients -> gate -> update

The objectives' weights are totalled over the global batch before the first
microbatch, so a sum over microbatches is the gradient of the whole batch's
loss, however it was split.

Random draws are keyed by a row's place in the global batch. The design keys
them by example id, but a row holds several examples and a batch carries no
ids. At a step a seed puts the same examples in the same row on any number of
processes, over any restart and any split into microbatches, so that a row
stands for its examples; only where rows, row length or packing change, which
make another run, are an example's draws others.

Seed and learning rates are inputs of the program, not part of it, so that
runs that differ in nothing else share a compilation (evals/workers.py).
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from align_jax.connectors.protocol import ConnectorOutput
from align_jax.parallel.layout import ROWS, Layout
from align_jax.train.measures import READ, first_rows, measures, mir
from align_jax.train.optimizer import Schedule
from align_jax.train.select import base, merge, unflatten
from align_jax.train.state import TrainState, shardings_of

Batch = dict[str, Any]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Step:
  """(state, batch) -> (state, metrics); the state is donated.

  Attributes:
    program: the jitted function of state, batch and `own`.
    own: what runs of one program differ in: `key`, the seed's random key
      u32[2], and `rates` f32[trained], peak learning rates in the order of
      the trained keys. On the host, for it is the same in all processes.
  """
  program: Any
  own: dict[str, np.ndarray]

  def __call__(self, state: TrainState,
               batch: Batch) -> tuple[TrainState, Metrics]:
    return self.program(state, batch, self.own)

  def lower(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
    """Of shapes, for devices that need not be here."""
    return self.program.lower(state, batch, self.own)


def make_step(model: Any, objectives: Mapping[str, tuple[Any, float]],
              tx: optax.GradientTransformation, share: Schedule,
              state: TrainState, layout: Layout, *, accumulate: int = 1,
              seed: int = 0, name: str = "train_step", measure: bool = False,
              rates: Mapping[str, float] | None = None) -> Step:
  """The jitted step of a stage.

  Args:
    model: `model.apply({"params": tree}, batch) -> outputs`; the batch has
      a random key a row more, "keys".
    objectives: name -> (objective, its weight in the loss).
    tx: the optimizer.
    share: the schedule, for the metrics.
    state: of the run, for its shardings; it is not changed here.
    layout: with the run's mesh.
    accumulate: A, microbatches a step; divides the rows.
    seed: of the run; random draws are keyed by (seed, step, row, objective).
    name: of the compiled function, by which compilations are counted.
    measure: add "measure/..." to the metrics: what train/measures.py has,
      and the measures of objectives that have such a method.
    rates: trainable's key -> peak learning rate, for `tx` of
      `make_optimizer`; None leaves it to `tx`.

  Returns:
    The step. Where the loss or the gradient norm is not finite the state
    stays as it was, and `metrics["finite"]` is 0.
  """
  mesh = layout.mesh
  where = shardings_of(state)
  tx = optax.with_extra_args_support(tx)
  keys = sorted(rates or {})
  own = {"key": np.asarray(jax.random.key_data(jax.random.key(seed))),
         "rates": np.array([rates[k] for k in keys], np.float32)}

  def loss_of(trained: dict[str, jax.Array], frozen: dict[str, jax.Array],
              batch: Batch, rows: jax.Array, step: jax.Array,
              totals: Metrics, root: jax.Array) -> tuple[jax.Array, Metrics]:
    params = unflatten(merge(trained, frozen))
    draws = row_keys(root, step, "model", rows)
    outputs = model.apply({"params": params}, batch | {"keys": draws})
    means = {}
    for kind, (objective, _) in objectives.items():
      rng = row_keys(root, step, kind, rows)
      with jax.named_scope(f"objective.{kind}"):  # so that plans can tell
        means[kind] = objective(outputs, batch, rng, layout) / totals[kind]
    seen = {f"objective/{k}": m for k, m in means.items()}
    if measure:
      scale = model.decoder.config.embed_scale
      found = measures(outputs, batch, layout, scale)
      if not model.connector.feedback_layer:
        found["mir"] = integration(model, params, outputs, batch, layout)
      for kind, (objective, _) in objectives.items():
        if hasattr(objective, "measures"):
          found |= {f"{kind}/{k}": m for k, m in objective.measures(
              outputs, batch, row_keys(root, step, kind, rows),
              layout).items()}
      seen |= {f"measure/{k}": m / accumulate for k, m in found.items()}
    return sum(objectives[k][1] * m for k, m in means.items()), seen

  def train_step(state: TrainState, batch: Batch, own: dict[str, jax.Array]
                 ) -> tuple[TrainState, Metrics]:
    root = jax.random.wrap_key_data(own["key"])
    count = batch["tokens"].shape[0]
    totals = {
        k: jnp.maximum(o.weight(batch, row_keys(
            root, state.step, k, jnp.arange(count)), layout), 1e-6)
        for k, (o, _) in objectives.items()}
    micro = jax.tree.map(lambda x: split_rows(x, accumulate, mesh),
                         {"batch": batch, "rows": jnp.arange(count)})
    grad_of = jax.value_and_grad(loss_of, has_aux=True)

    def of(part: Any) -> tuple[jax.Array, Metrics, dict[str, jax.Array]]:
      (loss, seen), grads = grad_of(
          state.trained, state.frozen, part["batch"], part["rows"],
          state.step, totals, root)
      return loss, seen, jax.lax.with_sharding_constraint(
          grads, where.trained)

    first = jax.tree.map(lambda x: x[0], micro)
    if accumulate == 1:  # the same sum, without a loop
      loss, seen, grads = of(first)
    else:
      names = [f"objective/{k}" for k in objectives]
      if measure:  # which there are, the objectives know
        names = jax.eval_shape(of, first)[1]
      zero = (jnp.zeros([]), {k: jnp.zeros([]) for k in names},
              jax.tree.map(jnp.zeros_like, state.trained))
      add = lambda carry, part: (jax.tree.map(jnp.add, carry, of(part)), None)
      (loss, seen, grads), _ = jax.lax.scan(add, zero, micro)

    norm = optax.global_norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    given = {k: own["rates"][i] for i, k in enumerate(keys)}
    updates, opt_state = tx.update(
        grads, state.opt_state, state.trained,
        **({"rates": given} if given else {}))
    new = state.replace(step=state.step + 1, opt_state=opt_state,
                        trained=optax.apply_updates(state.trained, updates))
    keep = lambda old, new: jnp.where(finite, new, old)
    state_out = state.replace(
        step=keep(state.step, new.step),
        trained=jax.tree.map(keep, state.trained, new.trained),
        opt_state=jax.tree.map(keep, state.opt_state, new.opt_state))
    metrics = {"loss": loss, "finite": finite, "grad_norm": norm,
               "schedule": share(state.step), **counts(batch)}
    metrics |= seen
    # What a mean is over: labelled tokens, or pairs of patches and words.
    metrics |= {f"weight/{k}": t for k, t in totals.items()}
    metrics |= {f"grad_norm/{k}": n for k, n in module_norms(grads).items()}
    return state_out, {k: jnp.float32(v) for k, v in metrics.items()}

  train_step.__name__ = train_step.__qualname__ = name
  rows, everywhere = NamedSharding(mesh, P(ROWS)), NamedSharding(mesh, P())
  return Step(jax.jit(train_step, in_shardings=(where, rows, everywhere),
                      out_shardings=(where, everywhere), donate_argnums=0),
              own)


def integration(model: Any, params: Any, outputs: dict[str, Any],
                batch: Batch, layout: Layout) -> jax.Array:
  """`mir` of one row of each shard, read once more, without gradients.

  A causal decoder's states of a row's beginning do not depend on its end, so
  that no more than a beginning is read.
  """
  few = lambda x: first_rows(jax.lax.stop_gradient(x), layout)
  rows = {name: few(batch[name])[:, :READ] for name in (
      "tokens", "visual_index", "positions", "segment_ids")}
  visual = ConnectorOutput(few(outputs["visual_tokens"]), {
      k: jax.lax.stop_gradient(x) for k, x in outputs[
          "connector_aux"].items() if k == "special_xd"})
  states = model.apply({"params": jax.lax.stop_gradient(params)}, rows,
                       visual, method="states")
  live, index = rows["segment_ids"] > 0, rows["visual_index"]
  own = (index >= 0) & (index < visual.tokens[0].size // states.shape[-1])
  return mir(states, live & own, live & (index < 0))


def split_rows(x: jax.Array, parts: int, mesh: Mesh) -> jax.Array:
  """[B, ...] -> [parts, B/parts, ...]; part a has the rows a, a+parts, ...

  Rows that lie on one device stay there, since its block of rows holds an
  equal share of every part.
  """
  x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
  return jax.lax.with_sharding_constraint(
      x, NamedSharding(mesh, P(None, ROWS)))


def row_keys(root: jax.Array, step: jax.Array, purpose: str,
             rows: jax.Array) -> jax.Array:
  """A random key for each row of the global batch, keys[B].

  Args:
    root: the key of the run's seed.
    step: of the stage.
    purpose: what it is drawn for.
    rows: i32[B], their places in the global batch.
  """
  key = jax.random.fold_in(root, step)
  key = jax.random.fold_in(key, zlib.crc32(purpose.encode()))
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def counts(batch: Batch) -> Metrics:
  """What a global batch holds, as f32 scalars."""
  found = {"tokens": (batch["segment_ids"] != 0).sum()}
  if "loss_weights" in batch:
    found["supervised_tokens"] = (batch["loss_weights"] != 0).sum()
  if "image_segment_ids" in batch:
    slots = batch["image_segment_ids"]
    found["images"] = (slots != 0).sum()
    found["empty_image_slots"] = (slots == 0).sum() / max(slots.size, 1)
  return found


def module_norms(grads: Mapping[str, jax.Array]) -> Metrics:
  """Gradient norm of each module: the first part of a trainable's key."""
  modules: dict[str, list[jax.Array]] = {}
  for key, grad in grads.items():
    modules.setdefault(base(key).split("/")[0], []).append(grad)
  return {name: optax.global_norm(leaves) for name, leaves in modules.items()}
