"""Attention: one entry, several forms of the same thing behind it.

A query attends to a key iff both belong to the same sample of their row and,
when causal, the key does not come after the query:

  row:          a a a b b .          segment ids  1 1 1 2 2 0
                                     positions    0 1 2 0 1 0
  may attend:   a x
                a x x                 . is padding: it attends to nothing,
                a x x x               nothing attends to it, and its output
                b       x             is zero
                b       x x
                .

A window of w hides keys w or more positions before the query.

  plain    ops/attention_plain.py    XLA, all scores at once: the reference
  chunked  ops/attention_chunked.py  XLA, a chunk of queries at a time
  splash   ops/attention_splash.py   TPU
  triton   ops/attention_gpu.py      GPU, packed rows
  cudnn    ops/attention_gpu.py      GPU, rows of one sample

Over a mesh all but the plain form run inside shard_map, on the rows and heads
of one device. Along `context` each device keeps its own queries and gathers
all keys and values: with grouped heads they are small beside the queries, any
mask stays a matter of one device, and one collective a layer is all there is;
a ring would send as much, in as many steps as there are devices, and would
need online sums across steps for every kernel. See ops/context.py for how
queries are dealt out so that the devices have equal work.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from align_jax.ops import attention_gpu, attention_splash
from align_jax.ops.attention_chunked import chunked
from align_jax.ops.attention_plain import attention_mask, plain
from align_jax.ops.context import in_order
from align_jax.parallel.layout import ACTIVATION_RULES, Layout
from align_jax.registry import nearest

__all__ = ["FORMS", "LARGEST", "attention", "attention_mask", "choose"]

FORMS = ("plain", "chunked", "splash", "triton", "cudnn")

# Where a form is compiled; elsewhere it is interpreted.
PLATFORM = {"splash": "tpu", "triton": "gpu", "cudnn": "gpu"}

# No array of queries x keys is made beyond this many of each.
LARGEST = 4096

# Below these lengths a kernel's start costs more than scores in memory.
_KERNEL_FROM = 512
_KERNEL_FROM_WHOLE = 1024


def choose(layout: Layout, *, length: int, keys: int, width: int, dtype: Any,
           segments: bool, causal: bool, packed: bool, static_window: bool,
           window: bool, soft_cap: bool) -> str:
  """The form for these shapes on this platform.

  Args:
    layout: the mesh, whose devices may be absent ones.
    length: L.
    keys: S.
    width: K.
    dtype: of q.
    segments: whether there are segment ids.
    causal: as in `attention`.
    packed: as in `attention`.
    static_window: whether all windows there may be are known.
    window: whether there may be one.
    soft_cap: whether logits are capped.
  """
  context = layout.shards(("context",))
  ordered = packed or not causal
  least = _KERNEL_FROM if causal else _KERNEL_FROM_WHOLE
  # Along context a device's queries are two pieces of whole blocks.
  fits = context == 1 or (
      length == keys and length % (2 * attention_splash.LANES * context) == 0)
  if min(length, keys) >= least and ordered:
    if layout.platform == "tpu" and static_window and fits:
      return "splash"
    if (layout.platform == "gpu" and not window and not soft_cap
        and context == 1 and length == keys):
      small = jnp.dtype(dtype).itemsize == 2
      if not segments and small and width % 8 == 0 and width <= 128:
        return "cudnn"
      return "triton"
  return "chunked" if length * keys > LARGEST ** 2 else "plain"


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_segments: jax.Array | None = None,
    kv_segments: jax.Array | None = None,
    q_positions: jax.Array | None = None,
    kv_positions: jax.Array | None = None,
    causal: bool = False,
    scale: float | None = None,
    window: int | jax.Array | None = None,
    windows: tuple[int, ...] | None = None,
    soft_cap: float | None = None,
    packed: bool = False,
    balanced: bool = False,
    layout: Layout = Layout(),
    rows: str = "b",
    form: str = "auto",
) -> jax.Array:
  """Softmax attention with grouped key-value heads, softmax in f32.

  Args:
    q: f[B,L,H,K].
    k: f[B,S,G,K]; G divides H, and query head h reads key head h // (H/G).
    v: f[B,S,G,K].
    q_segments: i32[B,L], 0 for padding. Without segments (both None) a row is
      one sample.
    kv_segments: i32[B,S].
    q_positions: i32[B,L], needed when causal.
    kv_positions: i32[B,S].
    causal: keys after the query are hidden.
    scale: of the logits; None is K ** -0.5.
    window: of a causal query, how many keys it sees, itself among them; 0 or
      None is no window. A traced i32 scalar lets layers of one scan differ.
    windows: every value that a traced window may have, where that is known;
      kernels, which need it, are then made for each.
    soft_cap: logits z become soft_cap * tanh(z / soft_cap), after the scale
      and before the mask (Gemma 2, arXiv 2408.00118); None leaves them.
    packed: queries and keys are the same tokens, each sample's lie together
      and their positions rise by one. Then a token's place in its row says
      what its position would, which is what kernels go by.
    balanced: along L everything lies as `ops.context.spread` deals it out.
    layout: the mesh; B over the axes of `rows`, L over context, heads over
      tensor (unless images take that axis).
    rows: the letter of the first axis: "b" rows, "i" images.
    form: one of `FORMS`, or "auto". A kernel asked for by name on another
      platform than its own is interpreted, which is slow.

  Returns:
    f[B,L,H,K] in q's dtype; zero where a query may attend to nothing.

  Raises:
    ValueError: heads that do not divide, positions missing, a window where
      attention is not causal, or a form that cannot do what is asked.
  """
  h, width, g = *q.shape[2:], k.shape[2]
  if h % g:
    raise ValueError(f"{h} query heads do not divide into {g} key-value heads")
  if causal and (q_positions is None or kv_positions is None):
    raise ValueError("causal attention needs q_positions and kv_positions")
  if not causal and window is not None:
    raise ValueError("a window needs causal attention")
  if (q_segments is None) != (kv_segments is None):
    raise ValueError("give both q_segments and kv_segments, or neither")
  fixed = isinstance(window, int | None)
  if fixed and not window:
    window = None
  if form == "auto":
    form = choose(
        layout, length=q.shape[1], keys=k.shape[1], width=width,
        dtype=q.dtype, segments=q_segments is not None, causal=causal,
        packed=packed, static_window=fixed or windows is not None,
        window=not fixed or bool(window), soft_cap=soft_cap is not None)
  if form not in FORMS:
    raise ValueError(f"unknown form of attention {form!r}"
                     f"{nearest(form, FORMS)} (known: {', '.join(FORMS)})")
  if form in ("splash", "triton", "cudnn") and causal and not packed:
    raise ValueError(f"the {form} form goes by places in the row, and causal "
                     "attention by positions; they agree in packed rows only")
  q = q * (width ** -0.5 if scale is None else scale)
  where = {name: x for name, x in dict(
      q_segments=q_segments, kv_segments=kv_segments, q_positions=q_positions,
      kv_positions=kv_positions).items() if x is not None}
  keep = functools.partial(checkpoint_name, name="attention")
  if form == "plain":
    return keep(plain(q, k, v, **where, causal=causal, window=window,
                      soft_cap=soft_cap))
  options = dict(causal=causal, soft_cap=soft_cap,
                 interpret=layout.platform != PLATFORM.get(form))
  if form == "chunked":
    local = functools.partial(chunked, causal=causal, soft_cap=soft_cap)
    return keep(_on_mesh(local, q, k, v, where, window, layout, rows,
                         balanced))
  if form in ("triton", "cudnn"):
    if window is not None or soft_cap is not None:
      raise ValueError(f"the {form} form has no window and no soft cap")
    local = functools.partial(getattr(attention_gpu, form), **options)
    return keep(_on_mesh(local, q, k, v, where, None, layout, rows,
                         balanced))
  if not fixed and windows is None:
    raise ValueError("the splash form needs to know every value that a "
                     "traced window may have (windows)")
  splash = lambda w: _on_mesh(
      functools.partial(attention_splash.splash, **options), q, k, v, where,
      w or None, layout, rows, balanced)
  if fixed:
    return splash(window)
  values = sorted(set(windows))
  place = jnp.searchsorted(jnp.asarray(values), window)
  return jax.lax.switch(
      place, [functools.partial(splash, w) for w in values])


def _on_mesh(local: Any, q: jax.Array, k: jax.Array, v: jax.Array,
             where: dict[str, jax.Array], window: Any, layout: Layout,
             rows: str, balanced: bool) -> jax.Array:
  """`local` on each device's rows, heads and queries."""
  mesh = layout.mesh
  length = q.shape[1]
  if mesh is None or mesh.size == 1:
    local, extra, _ = _kernel(local, length, k.shape[1], window, layout,
                              balanced)
    return local(q, k, v, window=window, **where, **extra)
  over = ACTIVATION_RULES[rows]
  over = over if q.shape[0] % layout.shards(over) == 0 else None
  free = lambda name: mesh.shape[name] > 1 and name not in (over or ())
  context = "context" if free("context") and not (
      length % mesh.shape["context"]
      or k.shape[1] % mesh.shape["context"]) else None
  tensor = None
  if free("tensor") and q.shape[2] % mesh.shape["tensor"] == 0:
    # Fewer key-value heads than devices: each is repeated for its queries.
    share = math.lcm(k.shape[2], mesh.shape["tensor"])
    if q.shape[2] % share == 0:
      tensor = "tensor"
      k, v = (jnp.repeat(x, share // x.shape[2], axis=2) for x in (k, v))
  heads = P(over, context, tensor)
  tokens = P(over, context)
  local, extra, spec = _kernel(local, length, k.shape[1], window,
                               layout if context else Layout(), balanced)
  traced = window is not None and not isinstance(window, int)

  def body(q: jax.Array, k: jax.Array, v: jax.Array,
           where: dict[str, jax.Array], extra: Any, moving: Any) -> jax.Array:
    if context:
      gather = lambda x: in_order(jax.lax.all_gather(
          x, context, axis=1, tiled=True), mesh.shape[context], balanced)
      k, v = gather(k), gather(v)
      where = {n: gather(x) if n.startswith("kv") else x
               for n, x in where.items()}
    return local(q, k, v, window=moving[0] if traced else window, **where,
                 **extra)

  moving = (window,) if traced else ()
  return jax.shard_map(
      body, mesh=mesh,
      in_specs=(heads, heads, heads, dict.fromkeys(where, tokens), spec,
                (P(),) * len(moving)),
      out_specs=heads, check_vma=False)(q, k, v, where, extra, moving)


def _kernel(local: Any, length: int, keys: int, window: Any, layout: Layout,
            balanced: bool) -> tuple[Any, dict[str, Any], dict[str, Any]]:
  """`local`; what the splash form is given beside, and how that is cut."""
  if local.func is not attention_splash.splash:
    return local, {}, {}
  options = local.keywords
  kernel, spec, share = attention_splash.make(
      length, keys, options["causal"], window, options["soft_cap"],
      layout, balanced, options["interpret"])
  return (functools.partial(local, share=share), {"kernel": kernel},
          {"kernel": spec})
