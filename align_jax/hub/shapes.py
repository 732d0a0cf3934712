"""The parameters that a checkpoint should have, by what its config says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from align_jax.hub.pretrained import Spec


def part_shapes(weights: str | Path, spec: Spec
                ) -> tuple[dict[str, Spec], dict[str, Mapping[str, Any]]]:
  """({part: its spec}, {part: {path: shape}}) of whatever `spec` is of."""
  from align_jax.decoders.transformer import DecoderConfig

  if spec.kind == "vlm":
    from align_jax.build import param_shapes
    from align_jax.hub.whole import checkpoint_run
    from align_jax.parallel.mesh import inference_mesh

    parts = checkpoint_run(weights).parts
    shapes = param_shapes(parts, inference_mesh(1))
    return dict(parts.specs), {
        name: {path.removeprefix(f"{name}/"): s for path, s in shapes.items()
               if path.startswith(f"{name}/")} for name in parts.specs}
  if isinstance(spec.config, DecoderConfig):
    from align_jax.hub.faces import decoder_shapes
    tree = decoder_shapes(spec.config)
  else:
    tree = _tower_shapes(spec.config)
  return {"": spec}, {"": flatten_dict(tree, sep="/")}


def _tower_shapes(config: Any) -> Any:
  """Of a tower, or of a model with a text side."""
  tower = getattr(config, "tower", config)
  side = tower.image_size
  pixels = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  if tower is config:
    made = jax.eval_shape(config.make().init, jax.random.key(0), pixels)
  else:
    batch = {
        "images": jax.ShapeDtypeStruct((1, 1, side, side, 3), jnp.uint8),
        "image_boxes": jax.ShapeDtypeStruct((1, 1, 4), jnp.int32),
        "image_segment_ids": jax.ShapeDtypeStruct((1, 1), jnp.int32),
        **{name: jax.ShapeDtypeStruct((1, 2), jnp.int32)
           for name in ("tokens", "segment_ids", "positions")}}
    made = jax.eval_shape(config.make().init, jax.random.key(0), batch)
  return made["params"]
