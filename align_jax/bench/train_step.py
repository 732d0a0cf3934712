"""C9, H1, H2 and H5: a training step, beside transformers + torch's."""

import dataclasses
from collections.abc import Iterator

import jax

from align_jax.bench import Options
from align_jax.bench.cases import (
  large_llava,
  made_up,
  ready,
  tiny_llava,
)
from align_jax.bench.figure import Figure
from align_jax.bench.speed import CONVENTION, flops_of, peak
from align_jax.bench.timing import paired
from align_jax.bench.versus_torch import TrainStep, llava
from align_jax.config import Config

# vocabulary, dtype -> key, goal, fail line
TINY = {
    (8192, "float32"): ("c9_v8192", 0.95, 1.05),
    (32_000, "float32"): ("c9_v32000", 0.70, 0.80),
    (8192, "bfloat16"): ("c9_bf16", 0.85, 0.95),
}


def run(options: Options) -> Iterator[Figure]:
  """A training step / one of transformers + torch at the same shapes."""
  if options.config is not None:
    yield beside(options.config, options, "vs_hf", None, None)
  elif jax.default_backend() == "gpu":
    yield from _large(options)
  else:
    for (vocab, dtype), (key, goal, limit) in TINY.items():
      yield beside(tiny_llava(vocab, dtype), options, key, goal, limit)


def beside(config: Config, options: Options, key: str, goal: float | None,
           limit: float | None, compiled: bool = False) -> Figure:
  """Ours / theirs, in turns in this process."""
  ours = ready(config, options.seed)
  batch = made_up(config, ours.stage, ours.parts, options.seed)
  theirs = TrainStep(llava(config, ours.parts), config, batch, ours.parts,
                     compiled)
  times = paired({"ours": ours, "theirs": theirs}, options.rounds, warm=3)
  how = "torch.compile" if compiled else "eager"
  return Figure(
      key, f"training step / transformers + torch ({how}), everything "
      "trained as the first stage says, AdamW and clipping included",
      shapes=ours.shapes, dtype=config.model.dtype, goal=goal, limit=limit,
      **times.ratio("ours", "theirs"))


def _large(options: Options) -> Iterator[Figure]:
  """On a GPU: utilisation, against torch.compile, ALIGN against an MLP."""
  mlp = ready(large_llava(3072), options.seed)
  times = paired({"mlp": mlp}, options.rounds, warm=3)
  if best := peak(mlp.mesh.size):
    yield Figure(
        "h1", "model FLOPs / published bf16 peak of the mesh, ViT-400M + 3B",
        shapes=mlp.shapes, dtype="bfloat16", unit="share", goal=0.40,
        higher=True, flops=CONVENTION,
        **times.rate("mlp", flops_of(mlp) / best))
  del mlp
  small = large_llava(2048)
  yield beside(small, options, "h2", 0.90, None, compiled=True)
  pair = {kind: ready(dataclasses.replace(
      large_llava(2048, kind)), options.seed) for kind in ("align", "mlp")}
  times = paired(dict(pair), options.rounds, warm=3)
  yield Figure("h5", "a step with ALIGN / with an MLP",
               shapes=pair["align"].shapes, dtype="bfloat16", goal=1.35,
               **times.ratio("align", "mlp"))
