"""C7 and H4: the chunked cross-entropy beside the plain one."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.bench import Options
from align_jax.bench.figure import Figure
from align_jax.bench.timing import paired, temporaries
from align_jax.ops.chunked_loss import chunked_loss, plain_loss


def run(options: Options) -> Iterator[Figure]:
  """The chunked next-token loss / the plain one, gradients included."""
  gpu = jax.default_backend() == "gpu"
  n, v, d = (8192, 131_072, 4096) if gpu else (1024, 32_000, 512)
  dtype = jnp.bfloat16 if gpu else jnp.float32
  rng = np.random.default_rng(options.seed)
  hidden = jnp.asarray(rng.normal(size=(1, n, d)), dtype)
  head = jnp.asarray(rng.normal(size=(v, d)) * d ** -0.5, dtype)
  targets = jnp.asarray(rng.integers(0, v, (1, n)), jnp.int32)
  weights = jnp.ones((1, n), jnp.float32)
  rest = (head, targets, weights)

  forms = {"chunked": chunked_loss, "plain": plain_loss}
  both = {name: jax.jit(jax.value_and_grad(f, argnums=(0, 1)))
          for name, f in forms.items()}
  times = paired({name: functools.partial(f, hidden, *rest)
                  for name, f in both.items()}, options.rounds)
  shapes, name = f"N={n} V={v} D={d}", jnp.dtype(dtype).name
  yield Figure(
      "c7_time", "chunked / plain cross-entropy, forward and backward",
      shapes=shapes, dtype=name, goal=1.15, limit=1.25,
      **times.ratio("chunked", "plain"))
  # Of the gradient to hidden alone, which is too small to hide temporaries.
  memory = {name: temporaries(jax.grad(f), hidden, *rest)
            for name, f in forms.items()}
  yield Figure(
      "c7_memory", "temporaries of plain / chunked, gradient to hidden alone",
      memory["plain"] / memory["chunked"], shapes, name, goal=2.5,
      higher=True, parts={f"{k}_MiB": b / 2 ** 20
                          for k, b in memory.items()})
  if gpu:
    yield Figure(
        "h4", "effective speed of the chunked cross-entropy", shapes=shapes,
        dtype=name, unit="TFLOP/s", goal=350, higher=True,
        flops="8 N V D, the convention of fused losses that recompute",
        **times.rate("chunked", 8 * n * v * d / 1e12))
