"""What the streaming ALIGN mix costs beside the plain one: C1 to C6.

Both are the whole op, the affine LayerNorm over the vocabulary among it.
Times are of forward and backward passes with every gradient, the two forms in
turn in one process, the median of paired ratios. Memory is what the compiler
plans for temporaries when the gradient to h alone is asked for, so that no
gradient of a table can hide them.
"""

import dataclasses
import functools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.ops.vocab_mix import FORMS, logit_bytes, vocab_mix
from align_jax.ops.vocab_mix import PLAIN_BYTES as PLAIN
from align_jax.parallel.layout import Layout

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Figure:
  """One figure with its goal.

  Attributes:
    what: in words.
    value: measured.
    goal: what it shall be, at most or, with `least`, at least.
    least: the goal is a lower bound.
    details: numbers behind it.
  """
  what: str
  value: float
  goal: float
  least: bool = False
  details: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def met(self) -> bool:
    return (self.value >= self.goal) if self.least else self.value <= self.goal


def measure(rounds: int = 15) -> dict[str, Figure]:
  """All six figures.

  Args:
    rounds: of each timing; below 15 a figure is only a hint.
  """
  return {"c1": _c1(rounds), "c2": _c2(), "c3": _c3(), "c4": _c4(rounds),
          "c5": _c5(rounds), "c6": _c6()}


def show(figures: dict[str, Figure]) -> str:
  """One line a figure."""
  lines = []
  for name, f in figures.items():
    sign = ">=" if f.least else "<="
    lines.append(f"{name}  {f.value:8.3g}  {sign} {f.goal:<6g} "
                 f"{'met ' if f.met else 'MISS'}  {f.what}")
  return "\n".join(lines)


def plain_json(figures: dict[str, Figure]) -> dict[str, Any]:
  """The same for `--json`."""
  return {name: dataclasses.asdict(f) | {"met": f.met}
          for name, f in figures.items()}


def _inputs(tokens: int, vocab: int, width: int) -> list[jax.Array]:
  keys = jax.random.split(jax.random.key(0), 6)
  draw = lambda i, *shape: jax.random.normal(keys[i], shape)
  return [draw(0, 1, tokens, width), 0.02 * draw(1, vocab, width),
          1 + 0.1 * draw(2, vocab), 0.1 * draw(3, vocab),
          draw(4, vocab, width), draw(5, 1, tokens, width)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _gradients(form: str, wanted: tuple[int, ...], layout: Layout,
               *args: jax.Array) -> Any:
  """The mix of args[:5] and its gradients, for the cotangent args[5]."""
  chosen = [args[i] for i in wanted]

  def run(*chosen: jax.Array) -> jax.Array:
    given = list(args[:5])
    for i, x in zip(wanted, chosen):
      given[i] = x
    return vocab_mix(*given, form=form, layout=layout)

  out, back = jax.vjp(run, *chosen)
  return out, back(args[5])


def _seconds(run: Callable[[], Any]) -> float:
  start = time.perf_counter()
  jax.block_until_ready(run())
  return time.perf_counter() - start


def _paired(sizes: tuple[int, int, int], rounds: int) -> dict[str, float]:
  """Median seconds of both forms, and the median of their paired ratios."""
  args = _inputs(*sizes)
  run = {form: functools.partial(
      _gradients, form, tuple(range(5)), Layout(), *args)
         for form in ("plain", "stream")}
  for form in run:
    _seconds(run[form])
  times = [{form: _seconds(run[form]) for form in run} for _ in range(rounds)]
  median = lambda of: statistics.median(of(t) for t in times)
  return {"ratio": median(lambda t: t["stream"] / t["plain"]),
          "plain_ms": 1e3 * median(lambda t: t["plain"]),
          "stream_ms": 1e3 * median(lambda t: t["stream"])}


def temporaries(form: str, tokens: int, vocab: int, width: int) -> int:
  """Bytes of temporaries of the gradient to h; compiled, not run."""
  shapes = jax.eval_shape(functools.partial(_inputs, tokens, vocab, width))
  compiled = _gradients.lower(form, (0,), Layout(), *shapes).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def _c1(rounds: int) -> Figure:
  found = _paired((1024, 32_000, 512), rounds)
  return Figure("time / plain, N 1024 V 32,000 D 512", found.pop("ratio"),
                1.10, details=found)


def _c2() -> Figure:
  both = lambda *sizes: [temporaries(f, *sizes) for f in ("plain", "stream")]
  plain, ours = both(1024, 32_000, 512)
  large_plain, large = both(1764, 128_256, 3072)
  # The goal at the large size is 15 times less and 120 MiB.
  ratio = min(plain / ours, 10 / 15 * large_plain / large,
              10 * 120 * MIB / large)
  return Figure(
      "plain / our temporaries, gradient to h; the least of N 1024 V 32,000 "
      "D 512 and, scaled to its own goals of 15 and 120 MiB, N 1764 V 128,256 "
      "D 3072", ratio, 10, True, {
          "ratio": plain / ours, "large_ratio": large_plain / large,
          "large_mib": large / MIB})


def _c3() -> Figure:
  small, large = (temporaries("stream", 512, v, 256) for v in (8000, 128_000))
  return Figure("temporaries at V 128,000 / at V 8,000, N 512 D 256",
                large / small, 1.1, details={"mib": large / MIB})


def _c4(rounds: int) -> Figure:
  found = _paired((512, 128_000, 256), rounds)
  return Figure("time / plain, N 512 V 128,000 D 256", found.pop("ratio"),
                1.0, details=found)


def _c5(rounds: int) -> Figure:
  details = {}
  for tokens in (128, 256, 512, 1024, 2048):
    found = _paired((tokens, 32_000, 256), rounds)
    h = jax.ShapeDtypeStruct((1, tokens, 256), jnp.float32)
    plain = logit_bytes(h, 32_000, Layout()) <= PLAIN
    ratio = found["ratio"]
    details[str(tokens)] = {
        "form": FORMS[1] if plain else FORMS[2],
        "against_better": max(1.0, 1 / ratio if plain else ratio),
        "stream_over_plain": ratio}
  return Figure("time of the form chosen / of the better one, V 32,000 D 256, "
                "the worst of N 128 to 2048",
                max(d["against_better"] for d in details.values()), 1.05,
                details=details)


def _c6() -> Figure:
  if len(jax.devices()) >= 4:
    found = sharded()
  else:  # the number of CPU devices is fixed when JAX starts
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    code = ("import json; from align_jax.bench.vocab_mix import sharded; "
            "print(json.dumps(sharded()))")
    found = json.loads(subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True,
        capture_output=True, text=True).stdout.splitlines()[-1])
  worst = max(found["relative_error"] / 1e-5, found["all_reduces"] / 3,
              10.0 * found["vocabulary_gathers"])
  return Figure("words over 4 devices: the largest of relative error / 1e-5, "
                "all-reduces forward / 3, and gathers of anything as long as "
                "the vocabulary", worst, 1.0, details=found)


def sharded(vocab: int = 2001, tokens: int = 64, width: int = 64
            ) -> dict[str, float]:
  """The op with its words over four devices, beside the plain one on one."""
  from jax.sharding import NamedSharding, PartitionSpec

  from align_jax.config import MeshConfig
  from align_jax.parallel.mesh import make_mesh

  errors, reduces, gathers = [], 0, 0
  for words in (vocab, vocab - vocab % 4):  # cut by us, and lying cut
    args = _inputs(tokens, words, width)
    want = _gradients("plain", tuple(range(5)), Layout(), *args)
    mesh = make_mesh(MeshConfig(data=1, tensor=4), jax.devices()[:4])
    cut = PartitionSpec(None if words % 4 else "tensor")
    placed = [jax.device_put(x, NamedSharding(
        mesh, cut if i in (1, 4) else PartitionSpec()))
              for i, x in enumerate(args)]
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
      got = _gradients("stream", tuple(range(5)), Layout(mesh), *placed)
      text = _gradients.lower("stream", (), Layout(mesh),
                              *placed).compile().as_text()
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
      g, w = np.asarray(g, "d"), np.asarray(w, "d")
      errors.append(np.linalg.norm(g - w) / np.linalg.norm(w))
    reduces = max(reduces, len(re.findall(r" all-reduce(?:-start)?\(", text)))
    for line in re.findall(r"= (\S+) all-gather(?:-start)?\(", text):
      sizes = [int(d) for d in re.findall(r"\d+", line.split("{")[0])[1:]]
      gathers += any(size >= words // 4 for size in sizes)
  return {"relative_error": float(max(errors)), "all_reduces": reduces,
          "vocabulary_gathers": gathers}
