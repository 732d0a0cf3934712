"""C1 to C6 and H3: the streaming ALIGN mix beside the plain one, and pruned.

Both are the whole op, the affine LayerNorm over the vocabulary among it.
Times are of forward and backward pass with every gradient. Memory is that of
the gradient to h alone, so that no gradient of a table can hide it.
"""

import functools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from align_jax.bench import Options
from align_jax.bench.figure import Figure
from align_jax.bench.timing import Timings, paired, temporaries
from align_jax.config import MeshConfig
from align_jax.ops.vocab_mix import PLAIN_BYTES, logit_bytes, vocab_mix
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh

MIB = 2**20
Sizes = tuple[int, int, int]  # N, V, D

# Of H3: nine tiles of 729 tokens, and four such pages, for which the plain
# form would hold 40 GB of scores.
PAGE, PAGES = (6561, 128_256, 3072), (26_244, 128_256, 3072)


def run(options: Options) -> Iterator[Figure]:
  """The streaming ALIGN mix / the plain one: time, memory, sharding."""
  gpu = jax.default_backend() == "gpu"
  dtype = "bfloat16" if gpu else "float32"
  if gpu:
    yield from large(options, dtype)
  else:
    sizes = (1024, 32_000, 512)
    yield Figure("c1", "streaming / plain, forward and backward",
                 shapes=_name(*sizes), dtype=dtype, goal=1.10, limit=1.25,
                 **_times(sizes, options, dtype).ratio("stream", "plain"))
  yield from _memory()
  sizes = (512, 128_000, 256)
  yield Figure("c4", "streaming / plain where V is large",
               shapes=_name(*sizes), dtype=dtype, goal=1.0, limit=1.15,
               **_times(sizes, options, dtype).ratio("stream", "plain"))
  yield _choice(options, dtype)
  yield _sharded()
  yield from _pruned(options, dtype)


def large(options: Options, dtype: str) -> Iterator[Figure]:
  """H3, for a GPU: at the size of documents, in C1's place."""
  about = dict(shapes=_name(*PAGE), dtype=dtype)
  speed = dict(unit="TFLOP/s", higher=True, flops="14 N V D: 4 forward, 10 "
               "backward, where the scores are computed again")
  work = lambda sizes: 14 * math.prod(sizes) / 1e12
  times = _times(PAGE, options, dtype)
  yield Figure("h3", "streaming / plain, forward and backward", goal=1.25,
               **about, **times.ratio("stream", "plain"))
  yield Figure("h3_speed", "effective speed of streaming, forward and "
               "backward", goal=400, **about, **speed,
               **times.rate("stream", work(PAGE)))
  mib = {form: _temporaries(form, PAGE, dtype) / MIB
         for form in ("plain", "stream")}
  yield Figure(
      "h3_memory", "temporaries of plain / streaming, gradient to h alone",
      mib["plain"] / mib["stream"], goal=10, higher=True,
      parts={f"{k}_MiB": v for k, v in mib.items()}, **about)
  times = _times(PAGES, options, dtype, forms=("stream",))
  yield Figure("h3_pages", "effective speed of streaming, four pages at a "
               "time", shapes=_name(*PAGES), dtype=dtype, **speed,
               **times.rate("stream", work(PAGES)))


def _name(n: int, v: int, d: int) -> str:
  return f"N={n} V={v} D={d}"


def _temporaries(form: str, sizes: Sizes, dtype: str = "float32",
                 **options: Any) -> int:
  """Bytes, of the gradient to h alone; compiled and not run."""
  return temporaries(functools.partial(
      gradients, form, (0,), Layout(), **options), *shapes(*sizes, dtype))


def _memory() -> Iterator[Figure]:
  """C2 and C3, compiled and not run; f32, since CPUs widen bf16 tables."""
  for key, sizes, goal, limit in (
      ("c2", (1024, 32_000, 512), 10, 8),
      ("c2_large", (1764, 128_256, 3072), 15, 15)):
    mib = {form: _temporaries(form, sizes) / MIB
           for form in ("plain", "stream")}
    yield Figure(
        key, "temporaries of plain / streaming, gradient to h alone",
        mib["plain"] / mib["stream"], _name(*sizes), "float32", goal=goal,
        limit=limit, higher=True, parts={f"{k}_MiB": v for k, v in mib.items()})
  yield Figure("c2_large_mib", "temporaries of streaming", mib["stream"],
               _name(*sizes), "float32", unit="MiB", goal=120)
  sizes = [(512, v, 256) for v in (8000, 128_000)]
  # The goal is for one size of chunk, so for one that divides both.
  mib = [_temporaries("stream", s, chunk=1000) / MIB for s in sizes]
  yield Figure("c3", "temporaries of streaming in chunks of 1,000 words, "
               "V = 128,000 / V = 8,000",
               mib[1] / mib[0], _name(*sizes[1]), "float32", goal=1.1,
               parts={"small_MiB": mib[0], "large_MiB": mib[1]})


def _choice(options: Options, dtype: str) -> Figure:
  """C5: what the automatic choice costs over the better of the two."""
  parts, worst = {}, None
  for n in (128, 256, 512, 1024, 2048):
    h = jax.ShapeDtypeStruct((1, n, 256), jnp.dtype(dtype))
    plain = logit_bytes(h, 32_000, Layout()) <= PLAIN_BYTES
    chosen, other = ("plain", "stream")[::1 if plain else -1]
    times = _times((n, 32_000, 256), options, dtype)
    found = times.ratio(chosen, other)
    parts[f"N={n} {chosen}/{other}"] = found["value"]
    if worst is None or found["value"] > worst["value"]:
      worst = found
  worst = worst | {"value": max(1.0, worst["value"]), "parts": parts}
  return Figure("c5", "the form chosen / the better one, the worst N",
                shapes="N=128..2048 V=32000 D=256", dtype=dtype, goal=1.05,
                limit=1.15, **worst)


def _pruned(options: Options, dtype: str) -> Iterator[Figure]:
  """What it costs to train with the paper's 3.4 thousand words alone."""
  sizes, count = (512, 128_000, 256), 3400
  args = inputs(sizes, dtype, options.seed)
  keep = jnp.arange(0, count * 37, 37, dtype=jnp.int32)
  every = tuple(range(5))
  variants = {"whole": functools.partial(
      _run, "stream", every, Layout(), *args)}
  for name, norm_kept in (("all", False), ("kept", True)):
    pruned = jax.jit(functools.partial(
        gradients, "stream", every, Layout(), norm_kept=norm_kept))
    variants[name] = functools.partial(pruned, *args, keep=keep)
  times = paired(variants, options.rounds)
  for name, what in (("all", "the norm over all words"),
                     ("kept", "the norm over kept words")):
    yield Figure(f"pruned_{name}", f"3,400 words kept, {what} / all words",
                 shapes="N=512 V=128000 D=256", dtype=dtype,
                 **times.ratio(name, "whole"))


def _sharded() -> Figure:
  """C6, on four devices, virtual ones where there are fewer."""
  if len(jax.devices()) >= 4:
    found = over_four_devices()
  else:  # how many there are is fixed when JAX starts
    code = ("import json; from align_jax.bench.vocab_mix import "
            "over_four_devices as run; print(json.dumps(run()))")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    found = json.loads(subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True,
        stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
  worst = max(found["relative_error"] / 1e-5, found["all_reduces"] / 3,
              2.0 * found["vocabulary_gathers"])
  return Figure(
      "c6", "words over 4 devices, the largest of: relative error / 1e-5, "
      "all-reduces forward / 3, 2 x gathers as long as the vocabulary",
      worst, "N=64 V=2000 and V=2001 D=64", "float32", goal=1.0, parts=found)


def over_four_devices() -> dict[str, float]:
  """Words over `tensor` = 4 beside the plain form on one device."""
  errors, reduces, gathers = [], 0, 0
  for vocab in (2000, 2001):  # the tables lie cut; each device cuts its own
    args = inputs((64, vocab, 64), "float32")
    mesh = make_mesh(MeshConfig(data=1, tensor=4), jax.devices()[:4])
    cut = P(None if vocab % 4 else "tensor")
    placed = [jax.device_put(x, NamedSharding(
        mesh, cut if i in (1, 4) else P())) for i, x in enumerate(args)]
    every = tuple(range(5))
    with jax.default_matmul_precision("highest"), jax.set_mesh(mesh):
      want = _run("plain", every, Layout(), *args)
      got = _run("stream", every, Layout(mesh), *placed)
      text = _run.lower("stream", (), Layout(mesh),
                        *placed).compile().as_text()
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
      g, w = np.asarray(g, "d"), np.asarray(w, "d")
      errors.append(float(np.linalg.norm(g - w) / np.linalg.norm(w)))
    reduces = max(reduces, len(re.findall(r" all-reduce(?:-start)?\(", text)))
    for shape in re.findall(r"= (\S+) all-gather(?:-start)?\(", text):
      sizes = [int(d) for d in re.findall(r"[\[,](\d+)", shape)]
      gathers += max(sizes, default=0) >= vocab // 4
  return {"relative_error": max(errors), "all_reduces": reduces,
          "vocabulary_gathers": gathers}


def shapes(n: int, v: int, d: int, dtype: str = "float32"
           ) -> list[jax.ShapeDtypeStruct]:
  """h, W2, the affine, E and a cotangent."""
  low = lambda *s: jax.ShapeDtypeStruct(s, jnp.dtype(dtype))
  vector = jax.ShapeDtypeStruct((v,), jnp.float32)
  return [low(1, n, d), low(v, d), vector, vector, low(v, d), low(1, n, d)]


def inputs(sizes: Sizes, dtype: str, seed: int = 0) -> list[jax.Array]:
  """Arrays of `shapes`."""
  rng = np.random.default_rng(seed)
  made = []
  for i, s in enumerate(shapes(*sizes, dtype)):
    x = rng.standard_normal(math.prod(s.shape), np.float32).reshape(s.shape)
    made.append(jnp.asarray(1 + 0.1 * x if i == 2 else x, s.dtype))
  return made


def gradients(form: str, wanted: tuple[int, ...], layout: Layout,
              *args: jax.Array, **options: Any) -> Any:
  """The mix of args[:5], and gradients for the cotangent args[5]."""

  def mix(*chosen: jax.Array) -> jax.Array:
    given = list(args[:5])
    for i, x in zip(wanted, chosen):
      given[i] = x
    return vocab_mix(*given, form=form, layout=layout, **options)

  out, back = jax.vjp(mix, *(args[i] for i in wanted))
  return out, back(args[5])


_run = jax.jit(gradients, static_argnums=(0, 1, 2))


def _times(sizes: Sizes, options: Options, dtype: str,
           forms: tuple[str, ...] = ("plain", "stream")) -> Timings:
  args = inputs(sizes, dtype, options.seed)
  return paired({form: functools.partial(
      _run, form, tuple(range(5)), Layout(), *args)
                 for form in forms}, options.rounds)
