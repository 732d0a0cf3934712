"""A stack of equal layers, held as one tree and run by one scan.

  params of the stack:  {"q_dhk": f[layers, D, H, K], ...}

One block is traced and compiled once, whatever the depth. A range of layers is
a static slice of the tree: what lies outside of it is not computed.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from align_jax.registry import nearest

# Names of what a policy may keep; ops/attention.py gives the second.
LAYER_INPUT, ATTENTION = "layer_input", "attention"

_keep = jax.checkpoint_policies
_POLICIES = {
    "full": _keep.nothing_saveable,
    "attention": _keep.save_only_these_names(ATTENTION),
    "dots": _keep.save_from_both_policies(
        _keep.dots_with_no_batch_dims_saveable,
        _keep.save_only_these_names(ATTENTION)),
    "offload": _keep.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER_INPUT],
        offload_src="device", offload_dst="pinned_host"),
}
REMAT = ("none", *_POLICIES)


def rematerialised(step: Any, policy: str) -> Any:
  """`step`, with what its backward pass keeps chosen by a policy's name.

  none       all intermediates
  full       a layer's input; the layer is computed again
  attention  a layer's input and what attention gives, so that attention's
             kernel, the most expensive thing to repeat in long rows, runs
             forward once; the rest is computed again
  dots       the results of matrix products; of attention what it gives
  offload    as full, and layers' inputs wait in the host's memory: for rows
             so long that they do not fit beside the weights

  Raises:
    ValueError: no such policy.
  """
  if policy not in REMAT:
    raise ValueError(
        f"unknown remat policy {policy!r}{nearest(policy, REMAT)} "
        f"(known: {', '.join(REMAT)})")
  if policy == "none":
    return step
  if policy == "offload":
    inner = step
    step = lambda x, layer: inner(checkpoint_name(x, LAYER_INPUT), layer)
  # A scan's body cannot be merged with its recomputation, so the barrier
  # against that, which costs fusions, is not needed.
  return jax.checkpoint(step, policy=_POLICIES[policy], prevent_cse=False)


def layer_of(tree: Any, index: int) -> Any:
  """One layer of a tree whose leaves lead with an axis of layers."""
  return jax.tree.map(lambda a: a[index], tree)


def apart(tree: Any) -> Any:
  """A stack's parameters, each layer in arrays of its own.

  {name: f[layers, ...]} -> {"0": {name: f[...]}, "1": ...}. A `LayerStack`
  that is given these is unrolled.
  """
  depth = len(jax.tree.leaves(tree)[0])
  return {str(i): layer_of(tree, i) for i in range(depth)}


class LayerStack(nn.Module):
  """`depth` copies of `block`, one after another.

  The block is called as `block(x, *shared, **scanned)` and returns `(x, out)`:
  `x` keeps its shape and dtype, `out` is any tree (None for nothing). It draws
  no random numbers and has no state but "params".

  Attributes:
    block: the template of a layer; its own parameters are never made.
    depth: number of layers.
    remat: a policy, see `rematerialised`.
    unroll: layers in one turn of the loop.
  """
  block: nn.Module
  depth: int
  remat: str = "none"
  unroll: int = 1

  @nn.compact
  def __call__(
      self,
      x: jax.Array,
      *shared: Any,
      scanned: dict[str, Any] | None = None,
      first: int = 0,
      last: int | None = None,
      return_all: bool = False,
  ) -> tuple[jax.Array, Any]:
    """Runs layers `first` (counted) to `last` (not counted).

    Args:
      x: the input of layer `first`.
      *shared: what every layer gets: positions, masks ...
      scanned: keyword -> tree whose leaves lead with an axis of `depth`; a
        layer gets its own slice (kinds of layers, caches).
      first: as in a Python slice; negative counts from the end.
      last: as in a Python slice; None is the end.
      return_all: every hidden state instead of the last.

    Returns:
      (x, outs): x as given or, with `return_all`, [layers + 1, ...], where
      entry 0 is the input; outs the layers' `out`, stacked.
    """
    block = self.block.clone(parent=None)
    scanned = scanned or {}
    first, last, _ = slice(first, last).indices(self.depth)

    if self.is_initializing():
      # Jitted, so that the layers' forward pass is never computed here.
      made = jax.jit(jax.vmap(lambda key: block.init(
          key, x, *shared, **layer_of(scanned, 0))["params"]))(
              jax.random.split(self.make_rng("params"), self.depth))
      for name, value in made.items():
        self.param(name, lambda _, value=value: value)
    params = self.variables["params"]

    def step(x: jax.Array, layer: tuple[Any, Any]) -> tuple[jax.Array, Any]:
      params, scanned = layer
      y, out = block.apply({"params": params}, x, *shared, **scanned)
      return y, (y if return_all else None, out)

    if "0" in params:  # see `apart`
      hidden, outs = [x], []
      for i in range(first, last):
        x, (_, out) = step(x, (params[str(i)], layer_of(scanned, i)))
        hidden.append(x)
        outs.append(out)
      return (jnp.stack(hidden) if return_all else x,
              jax.tree.map(lambda *each: jnp.stack(each), *outs))
    layers = (params, scanned)
    if (first, last) != (0, self.depth):
      layers = jax.tree.map(lambda a: a[first:last], layers)
    y, (hidden, outs) = jax.lax.scan(
        rematerialised(step, self.remat), x, layers,
        length=max(last - first, 0), unroll=self.unroll)
    if return_all:
      y = jnp.concatenate([x[None], hidden])
    return y, outs
