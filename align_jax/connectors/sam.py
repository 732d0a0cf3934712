"""SAM: a Q-Former whose images guide each other (arXiv 2408.12867).

The mechanism is in guidance.py. The paper's figure and the authors' code
differ:

                    released_code          paper
  l, k              12, 12                 any; 12, 12 unless given
  memory of image i all images             the others
  guided            queries and text       queries
  dropout           the frozen Q-Former's  none
                    is active, 0.1

Of the Q-Former's layers those of odd number, counted from 1, look at an image.
With l = k = 12 nothing looks at the memory after it was guided, and what W_c
adds no longer decides where the image is looked at. So `recommended` (ours,
not measured here yet) is the paper's form with l = 3 and k = 9: the guided
stream looks at the memory four times, and the guided queries look at the image
twice more.

With two images the memory "others" is simply the other image: the softmax is
over one, and the score's weights get no gradient. It learns from prompts of
three images or more.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax

from align_jax.connectors.guidance import CrossImageGuidance, check_layers
from align_jax.connectors.perceiver import FORMS, Perceiver
from align_jax.connectors.protocol import ConnectorOutput, Context
from align_jax.connectors.qformer import (
  QFormer,
  flat,
  image_keys,
  sample_of,
  take_samples,
)
from align_jax.errors import InputError
from align_jax.registry import nearest

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "released_code": dict(layer_h=12, layer_c=12, memory="all",
                          guide_text=True, dropout=0.1),
    "paper": dict(layer_h=12, layer_c=12, memory="others", guide_text=False,
                  dropout=0.0),
    "recommended": dict(layer_h=3, layer_c=9, memory="others",
                        guide_text=False, dropout=0.0),
}


class SAM(QFormer):
  """InstructBLIP's Q-Former with guidance across the images of a prompt.

  Parameters: the Q-Former's and `guidance/...`. In the published recipe the
  six tensors `connector/guidance/*` are all that is trained: 1,182,593
  parameters at full size.

  Attributes:
    preset: a key of PRESETS; what is not given below is the preset's.
    layer_h: l, the layer whose input guides the second stream.
    layer_c: k, the layer before which the second stream guides back.
    memory: "all", "others", and for controls "self" and "elsewhere", with
      which what an image gives depends on the batch it is in.
    guide_text: text positions are guided as well as queries.
    reuse: see CrossImageGuidance.
  """
  extends: ClassVar[str] = "qformer"
  added: ClassVar[Mapping[str, str]] = {"guidance/*": ""}

  preset: str = "recommended"
  layer_h: int | None = None
  layer_c: int | None = None
  memory: str | None = None
  guide_text: bool | None = None
  dropout: float | None = None
  reuse: bool = True

  @classmethod
  def tokens_out(cls, patches: int, preset: str = "recommended",
                 **options: Any) -> int:
    """As many as there are queries.

    Raises:
      InputError: no such preset, or layers that do not follow one another.
    """
    chosen = _chosen(preset, options)
    check_layers(chosen["layer_h"], chosen["layer_c"],
                 options.get("depth", cls.depth))
    return super().tokens_out(patches, **options)

  @property
  def rate(self) -> float:
    """Of dropout."""
    return self.setting("dropout")

  def setting(self, name: str) -> Any:
    """What is given, or the preset's."""
    given = {n: getattr(self, n) for n in PRESETS["paper"]}
    return _chosen(self.preset, given)[name]

  @nn.compact
  def __call__(self, features: jax.Array, image_mask: jax.Array,
               context: Context) -> ConnectorOutput:
    """features f[B,N,P,C] -> tokens f[B,N,queries,D]."""
    del image_mask
    layers = self.runner(features.shape[-1])
    start, mask = self.begin(context)
    places = sample_of(context, start.shape[1], self.text)

    def run(x: jax.Array, memory: jax.Array, at: jax.Array, first: int,
            last: int, stream: int) -> jax.Array:
      y = layers(flat(x), flat(memory), flat(take_samples(mask, at)), first,
                 last, keys=image_keys(context, x.shape[1], stream))
      return y.reshape(x.shape)

    guidance = CrossImageGuidance(
        layer_h=self.setting("layer_h"), layer_c=self.setting("layer_c"),
        depth=self.depth, memory=self.setting("memory"),
        guided=0 if self.setting("guide_text") else self.queries,
        reuse=self.reuse, dtype=self.dtype, layout=self.layout,
        name="guidance")
    x = guidance(run, start, places, features.astype(self.dtype),
                 context.image_segment_ids)
    return ConnectorOutput(self.end(x))


class GuidedPerceiver(Perceiver):
  """The same guidance around a perceiver resampler: ours, not the paper's.

  Every layer of a perceiver looks at the image. It reads no instruction: the
  second stream is then computed for each image slot, although all are alike.

  Parameters: the perceiver's and `guidance/...`.

  Attributes:
    layer_h: l; 0 is the middle layer.
    layer_c: k; 0 is the last.
    memory: as SAM's.
  """
  extends: ClassVar[str] = "perceiver"
  added: ClassVar[Mapping[str, str]] = {"guidance/*": ""}

  layer_h: int = 0
  layer_c: int = 0
  memory: str = "others"

  def guided_layers(self, depth: int) -> tuple[int, int]:
    """(l, k) of a perceiver of so many layers."""
    return self.layer_h or (depth + 1) // 2, self.layer_c or depth

  @nn.compact
  def __call__(self, features: jax.Array, image_mask: jax.Array,
               context: Context) -> ConnectorOutput:
    """features f[B,N,P,C] -> tokens f[B,N,latents,D]."""
    del image_mask
    b, n = features.shape[:2]
    layers = self.layers()
    start, patches = self.begin(features)

    def run(x: jax.Array, memory: jax.Array, at: jax.Array, first: int,
            last: int, stream: int) -> jax.Array:
      del at, stream
      y, _ = layers(flat(x), flat(memory), first=first, last=last)
      return y.reshape(x.shape)

    depth = self.depth or FORMS[self.form]["depth"]
    layer_h, layer_c = self.guided_layers(depth)
    guidance = CrossImageGuidance(
        layer_h=layer_h, layer_c=layer_c, depth=depth, memory=self.memory,
        dtype=self.dtype, layout=self.layout, name="guidance")
    rows = lambda x: x.reshape(b, n, *x.shape[1:])
    x = guidance(run, rows(start), sample_of(context, n, False),
                 rows(patches), context.image_segment_ids)
    return ConnectorOutput(self.end(flat(x), b, n))


def _chosen(preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
  """A preset with what is given in its place.

  Raises:
    InputError: no such preset.
  """
  if preset not in PRESETS:
    raise InputError(f"connector 'sam' has no preset {preset!r}"
                     f"{nearest(preset, PRESETS)} (known: "
                     f"{', '.join(PRESETS)})")
  base = dict(PRESETS[preset])
  return base | {name: given[name] for name in base
                 if given.get(name) is not None}
