"""What a connector costs when a model answers: AlignVLM's table 7.

Each connector in turn stands between the same tower and the same decoder, with
random weights; a sample is one image, a question and an answer of 20 tokens,
which is what table 7's seconds times its tokens/s come to. All connectors are
timed in turns. What a tile becomes, and what that costs without running it,
stands beside the seconds.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.bench import Options
from align_jax.bench.figure import Figure
from align_jax.bench.timing import Timings, paired
from align_jax.build import Parts, build, init_params
from align_jax.config import (
  Config,
  ConnectorConfig,
  DataConfig,
  MeshConfig,
  ModelConfig,
  PartConfig,
)
from align_jax.evals.generate import Generator
from align_jax.evals.prompts import Prompt
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.plan.cost import connector_cost
from align_jax.train.select import flatten

QUESTION, ANSWER = 32, 20  # tokens

# The paper's, and what it is compared with; options where defaults do not fit
# the patches of the model at hand are found by `_options`.
KINDS: dict[str, dict[str, Any]] = {
    "mlp": {}, "linear": {}, "pixel_shuffle": {}, "perceiver": {}, "ovis": {},
    "h_reducer": {}, "c_abstractor": {}, "d_abstractor": {},
    "qformer": dict(text=False), "align": {},
}


def run(options: Options) -> Iterator[Figure]:
  """Table 7: seconds a sample, tokens/s and memory of every connector."""
  model = options.config.model if options.config else _model()
  cases: dict[str, _Case] = {}
  for kind, given in KINDS.items():
    # One tower and one decoder serve all.
    shared = next(iter(cases.values())).params if cases else {}
    cases[kind] = _Case(model, kind, given, options.seed, shared)
  times = paired({kind: case.answer for kind, case in cases.items()},
                 options.rounds)
  for case in cases.values():
    yield case.figure(times)


def _model() -> ModelConfig:
  """Table 7's on an accelerator, one of a hundredth on processors."""
  if jax.default_backend() != "cpu":
    return ModelConfig(tower=PartConfig(published="siglip_so400m_384"),
                       decoder=PartConfig(published="llama32_3b"))
  tower = PartConfig(kind="siglip", config=dict(
      image_size=224, patch_size=14, width=192, layers=4, heads=3,
      mlp_width=768))
  decoder = PartConfig(kind="llama", config=dict(
      vocab_size=32_000, width=256, layers=4, heads=4, mlp_width=688,
      tied_head=True))
  return ModelConfig(tower=tower, decoder=decoder, dtype="float32",
                     frozen_dtype="float32", remat="none")


def _options(kind: str, given: dict[str, Any], patches: int) -> dict[str, Any]:
  """What makes a connector fit a grid that its default does not divide."""
  side = math.isqrt(patches)
  divisor = next((n for n in (4, 2, 3, 5, 7) if side % n == 0), 1)
  if kind == "h_reducer":
    return given | {"columns": divisor}
  if kind == "pixel_shuffle" and side % 2:
    return given | {"form": "idefics3", "factor": divisor}
  return given


class _Case:
  """A connector in a model, ready to answer."""

  def __init__(self, model: ModelConfig, kind: str, given: dict[str, Any],
               seed: int, shared: Any):
    side = build(model).model.tower.config
    given = _options(kind, given, side.patches)
    model = dataclasses.replace(
        model, connector=ConnectorConfig(kind, given), prompt_tokens=0)
    self.kind, self.given = kind, given
    self.parts: Parts = build(model, Layout(make_mesh(MeshConfig(data=1))))
    mesh = self.parts.model.layout.mesh
    params, _ = init_params(self.parts, mesh, (), jax.random.key(seed))
    dtype = jnp.dtype(model.dtype)
    self.params = jax.tree.map(
        lambda x: x.astype(dtype) if x.ndim > 1 else x, params)
    self.params |= {name: shared[name] for name in ("tower", "decoder")
                    if name in shared}
    rng = np.random.default_rng(seed)
    size, vocab = side.image_size, self.parts.model.decoder.config.vocab_size
    pixels = rng.integers(0, 256, (1, size, size, 3), np.uint8)
    boxes = np.asarray([[0, 0, size, size]], np.int32)
    t = self.parts.tokens_per_image
    self.prompt = Prompt(
        np.concatenate([np.zeros(t), rng.integers(0, vocab, QUESTION)]).astype(
            np.int32),
        np.concatenate([np.arange(t), np.full(QUESTION, -1)]).astype(np.int32),
        images=0)
    # A stop token that is no word: every answer has its full length.
    generator = Generator(self.parts.model, self.params, [vocab], rows=1)
    self.answer: Callable[[], Any] = lambda: generator.generate(
        [self.prompt], lambda key: (pixels, boxes), ANSWER)
    self.batch = dict(
        tokens=self.prompt.tokens[None], visual_index=self.prompt.visual[None],
        positions=np.arange(t + QUESTION, dtype=np.int32)[None],
        segment_ids=np.ones((1, t + QUESTION), np.int32),
        images=pixels[None], image_boxes=boxes[None],
        image_segment_ids=np.ones((1, 1), np.int32), extras={})

  def figure(self, times: Timings) -> Figure:
    model = self.parts.model
    found = times.of(self.kind)
    cost = self._cost()
    memory = jax.jit(self._read).lower(
        self.params, self.batch).compile().memory_analysis()
    size = sum(x.nbytes for x in jax.tree.leaves(self.params))
    t, d = model.tower.config, model.decoder.config
    named = ", ".join(f"{k}={v}" for k, v in self.given.items())
    return Figure(
        f"table7_{self.kind}",
        f"a sample with {self.kind}" + (f" ({named})" if named else "")
        + f": image, question of {QUESTION}, answer of {ANSWER} tokens",
        shapes=f"B=1 N=1; tower {t.layers} x {t.width}, P={t.patches}; decoder "
        f"{d.layers} x {d.width}, V={d.vocab_size}",
        dtype=str(jnp.dtype(self.parts.config.dtype)),
        flops="2 for each multiply and add of an image's matrix products",
        **found | {"parts": {
            "tokens_per_second": ANSWER / found["value"],
            "memory_mib": (size + memory.temp_size_in_bytes) / 2**20,
            "tokens_out": cost["tokens_out"],
            "parameters": cost["parameters"],
            "gflops_an_image": cost["flops"] / 1e9,
        }})

  def _read(self, params: Any, batch: dict[str, Any]) -> jax.Array:
    """The prompt read once, to its last position's logits."""
    model = self.parts.model
    hidden = model.apply({"params": params}, batch)["hidden"]
    return model.apply({"params": params}, hidden[:, -1], method="logits")

  def _cost(self) -> dict[str, Any]:
    """Of the connector, for an image."""
    config = Config("bench", self.parts.config, DataConfig(
        rows=1, row_length=2, images_per_row=1), ())
    shapes = {path: jax.ShapeDtypeStruct(x.shape, x.dtype)
              for path, x in flatten(self.params).items()}
    return connector_cost(config, self.parts, shapes)
