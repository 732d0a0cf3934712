"""The Q-Former of BLIP-2 and InstructBLIP, with the map to the LLM's width.

  [32 queries ; instruction] --LN--> 12 layers --queries--> linear --> tokens

  layer   attend among queries and text
          queries: attend to the image     (every second layer, from the first)
          feed forward, one for queries, another for text
  each with a residual and then LayerNorm, as in BERT

(BLIP-2, arXiv 2301.12597, section 3.1; InstructBLIP, arXiv 2305.06500,
section 2.3; transformers' modeling_blip_2.py and modeling_instructblip.py.)
InstructBLIP reads the instruction, so that what is extracted follows the
question; BLIP-2 (`text=False`) does not. The towers of both keep their class
token.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from align_jax.config import Config
from align_jax.connectors.instruction import instruction_reader
from align_jax.connectors.protocol import Connector, ConnectorOutput, Context
from align_jax.data.example import Example
from align_jax.ops.embed_lookup import embed_lookup
from align_jax.ops.norms import layer_norm
from align_jax.parallel.layout import Layout

Params = dict[str, jax.Array]

_EPS = 1e-12
_MASKED = -1e30  # finite: a row with nothing to attend to has no NaN


class Layers(nn.Module):
  """A stack of Q-Former layers, of which any range can be run.

  Parameters (e width, h heads, k head width, f hidden, c the image's width),
  stacked over layers, and under `cross/` over the layers that look:
    layers/  q_ehk k_ehk v_ehk (and *_bias_hk) o_hke o_bias_e norm_*_e,
             query_up_ef query_up_bias_f query_down_fe query_down_bias_e
             query_norm_*_e, and with text the same six of text_*
    cross/layers/  q_ehk k_chk v_chk (and *_bias_hk) o_hke o_bias_e norm_*_e

  Attributes:
    depth: layers.
    period: every period-th layer looks at the image, the first among them.
    width: E.
    queries: T; what stands behind them is text.
    text: whether there is text.
    dropout: rate where keys are given: on attention weights, and on what is
      added to the residual stream.
  """
  depth: int
  period: int
  width: int
  heads: int
  mlp_width: int
  memory_width: int
  queries: int
  text: bool
  dropout: float
  dtype: Any = jnp.float32
  layout: Layout = Layout()

  def setup(self) -> None:
    e, h, f, c = self.width, self.heads, self.mlp_width, self.memory_width
    k, looks = e // h, -(-self.depth // self.period)

    def attending(memory: str, m: int) -> dict[str, tuple[int, ...]]:
      return {"q_ehk": (e, h, k), "q_bias_hk": (h, k),
              f"k_{memory}hk": (m, h, k), "k_bias_hk": (h, k),
              f"v_{memory}hk": (m, h, k), "v_bias_hk": (h, k),
              "o_hke": (h, k, e), "o_bias_e": (e,),
              "norm_scale_e": (e,), "norm_bias_e": (e,)}

    shapes = attending("e", e)
    for kind in ("query", "text")[:1 + self.text]:
      shapes |= {f"{kind}_up_ef": (e, f), f"{kind}_up_bias_f": (f,),
                 f"{kind}_down_fe": (f, e), f"{kind}_down_bias_e": (e,),
                 f"{kind}_norm_scale_e": (e,), f"{kind}_norm_bias_e": (e,)}
    self.layers = Stacked(self.depth, shapes)
    self.cross = Cross(looks, attending("c", c))

  def __call__(self, x: jax.Array, memory: jax.Array, mask: jax.Array,
               first: int = 0, last: int | None = None,
               keys: jax.Array | None = None) -> jax.Array:
    """Layers `first` (counted from 0) to `last` (not counted).

    Args:
      x: f[I,L,E], queries first.
      memory: f[I,P,C], what is looked at.
      mask: b[I,L], which positions there are.
      first: as in a Python slice.
      last: as in a Python slice; None is the end.
      keys: keys[I] for dropout; None is none.

    Returns:
      f[I,L,E].
    """
    layers, cross = self.layers(), self.cross()
    first, last, _ = slice(first, last).indices(self.depth)
    at = first
    while at < last:
      groups = (last - at) // self.period
      if at % self.period or not groups:
        x = self._layer(
            x, memory, mask, jax.tree.map(lambda a, at=at: a[at], layers),
            None if at % self.period else jax.tree.map(
                lambda a, at=at: a[at // self.period], cross), at, keys)
        at += 1
        continue
      # Whole periods: one body, whatever the depth.
      end = at + groups * self.period
      parts = (
          jax.tree.map(lambda a, at=at, end=end: a[at:end].reshape(
              -1, self.period, *a.shape[1:]), layers),
          jax.tree.map(lambda a, at=at, end=end: a[
              at // self.period:end // self.period], cross),
          jnp.arange(at, end, self.period))

      def step(x: jax.Array, part: Any) -> tuple[jax.Array, None]:
        ours, looking, number = part
        for i in range(self.period):
          x = self._layer(x, memory, mask,
                          jax.tree.map(lambda a, i=i: a[i], ours),
                          None if i else looking, number + i, keys)
        return x, None

      if groups == 1:
        x, _ = step(x, jax.tree.map(lambda a: a[0], parts))
      else:
        x, _ = jax.lax.scan(step, x, parts)
      at = end
    return x

  def _layer(self, x: jax.Array, memory: jax.Array, mask: jax.Array,
             p: Params, looking: Params | None, number: Any,
             keys: jax.Array | None) -> jax.Array:
    """One layer; `looking` has the parameters of its look at the image."""
    def drop(part: int) -> Callable[[jax.Array], jax.Array]:
      return lambda y: _dropped(y, self.dropout, keys, number * 8 + part)

    x = self._attend(x, x, mask, p, drop(0), drop(1))
    queries, text = x[:, :self.queries], x[:, self.queries:]
    if looking is not None:
      queries = self._attend(queries, memory, None, looking, drop(2), drop(3))
    queries = self._feed(queries, p, "query", drop(4))
    if text.shape[1]:
      text = self._feed(text, p, "text", drop(5))
      queries = jnp.concatenate([queries, text], axis=1)
    return self.layout.constrain(queries, "b..")

  def _attend(self, x: jax.Array, memory: jax.Array, mask: jax.Array | None,
              p: Params, drop: Callable, drop_out: Callable) -> jax.Array:
    letter = "e" if "k_ehk" in p else "c"
    k = p["q_ehk"].shape[-1]
    cast = lambda name: p[name].astype(self.dtype)

    def heads(y: jax.Array, name: str, width: str) -> jax.Array:
      y = jnp.einsum("ile,ehk->ilhk", y, cast(f"{name}_{width}hk"))
      return self.layout.constrain(y + cast(f"{name}_bias_hk"), "b.h.")

    q = heads(x, "q", "e") * k ** -0.5
    scores = jnp.einsum("ilhk,ishk->ihls", q, heads(memory, "k", letter),
                        preferred_element_type=jnp.float32)
    if mask is not None:
      scores = jnp.where(mask[:, None, None], scores, _MASKED)
    probs = drop(jax.nn.softmax(scores).astype(self.dtype))
    y = jnp.einsum("ihls,ishk->ilhk", probs, heads(memory, "v", letter))
    y = jnp.einsum("ilhk,hke->ile", y, cast("o_hke")) + cast("o_bias_e")
    return layer_norm(x + drop_out(y), p["norm_scale_e"], p["norm_bias_e"],
                      _EPS)

  def _feed(self, x: jax.Array, p: Params, kind: str,
            drop: Callable) -> jax.Array:
    cast = lambda name: p[f"{kind}_{name}"].astype(self.dtype)
    y = self.layout.constrain(x @ cast("up_ef") + cast("up_bias_f"), "b.f")
    y = nn.gelu(y, approximate=False) @ cast("down_fe") + cast("down_bias_e")
    return layer_norm(x + drop(y), p[f"{kind}_norm_scale_e"],
                      p[f"{kind}_norm_bias_e"], _EPS)


class Stacked(nn.Module):
  """Parameters of equal layers, stacked: {name: f[depth, ...]}."""
  depth: int
  shapes: Any

  @nn.compact
  def __call__(self) -> Params:
    """The parameters; at first each layer passes on what it is given.

    Those who publish a Q-Former start from BERT's own weights. From scratch,
    twelve layers drawn as BERT's learn far later: which of some five things
    is meant they knew after 51,200 questions in 52 %, from here in 72 %.
    """
    def start(name: str, shape: tuple[int, ...]) -> Any:
      if "norm" in name:
        return nn.initializers.zeros if "bias" in name else (
            nn.initializers.ones)
      if "bias" in name or name == "o_hke" or name.endswith("down_fe"):
        return nn.initializers.zeros
      return nn.initializers.normal(shape[0] ** -0.5)

    return {name: self.param(name, start(name, shape), (self.depth, *shape))
            for name, shape in dict(self.shapes).items()}


class Cross(nn.Module):
  """The layers' looks at the image, under `layers/` as any stack."""
  depth: int
  shapes: Any

  @nn.compact
  def __call__(self) -> Params:
    """The parameters."""
    return Stacked(self.depth, self.shapes, name="layers")()


def _dropped(x: jax.Array, rate: float, keys: jax.Array | None,
             salt: Any) -> jax.Array:
  """Inverted dropout, each image by its own key; x f[I,...], keys[I]."""
  if keys is None or not rate:
    return x
  kept = jax.vmap(lambda key: jax.random.bernoulli(
      jax.random.fold_in(key, salt), 1 - rate, x.shape[1:]))(keys)
  return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


class QFormer(Connector):
  """`queries` tokens an image, whatever the number of patches.

  Parameters: `queries_te` f[T,E]; with text `words_ve` f[W,E] and
  `positions_le` f[Lmax,E]; `norm_scale_e`, `norm_bias_e`; `stack/...` (see
  Layers); `out_ed`, `out_bias_d`. Published sizes are the defaults.

  The batch's field "instruction" i32[B,S,L] holds each sample's instruction in
  tokens of the Q-Former's own tokenizer, 0 behind its end; see
  connectors/instruction.py for where it comes from. All images of a sample read
  the same instruction.

  Attributes:
    queries: T.
    text: reads instructions (InstructBLIP); False is BLIP-2.
    words: rows of the Q-Former's word embeddings; BERT's 30,522 and "[DEC]".
    positions: the longest text that has position embeddings.
    instruction_length: L, of the batch's field.
    tokenizer: folder of the Q-Former's tokenizer, for the host.
    long: an instruction over L tokens is refused ("refuse"), or loses its
      beginning as in the published evaluation ("left").
    dropout: rate in training. The published code leaves a frozen Q-Former's
      dropout on; here it is off unless asked for.
  """
  queries: int = 32
  depth: int = 12
  period: int = 2
  width: int = 768
  heads: int = 12
  mlp_width: int = 3072
  text: bool = True
  words: int = 30523
  positions: int = 512
  instruction_length: int = 128
  tokenizer: str = ""
  long: str = "refuse"
  dropout: float = 0.0

  free = ("instruction_length", "tokenizer", "long", "dropout")

  @classmethod
  def tokens_out(cls, patches: int, queries: int = 32, **options: Any) -> int:
    """As many as there are queries."""
    del patches, options
    return queries

  @classmethod
  def extras(cls, config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """{"instruction": i32[B,S,L]}; nothing without text.

    S: as many samples as images may be packed into a row; one where rows hold
    one sample each.
    """
    options = config.model.connector.options
    if not options.get("text", cls.text):
      return {}
    samples = max(config.data.images_per_row, 1) if config.data.pack else 1
    length = options.get("instruction_length", cls.instruction_length)
    return {"instruction": jax.ShapeDtypeStruct(
        (config.data.rows, samples, length), np.int32)}

  @classmethod
  def annotator(cls, **options: Any
                ) -> Callable[[Example], dict[str, np.ndarray]] | None:
    """The first user turn of an example, in the Q-Former's tokens."""
    if not options.get("text", cls.text):
      return None
    return instruction_reader(
        options.get("tokenizer", cls.tokenizer),
        options.get("instruction_length", cls.instruction_length),
        options.get("long", cls.long), options.get("words", cls.words))

  @nn.compact
  def __call__(self, features: jax.Array, image_mask: jax.Array,
               context: Context) -> ConnectorOutput:
    """features f[B,N,P,C] -> tokens f[B,N,queries,D]."""
    del image_mask
    b, n = features.shape[:2]
    run = self.runner(features.shape[-1])
    start, mask = self.begin(context)
    places = sample_of(context, start.shape[1], self.text)
    at_image = lambda a: flat(take_samples(a, places))
    x = run(at_image(start), flat(features.astype(self.dtype)),
            at_image(mask), keys=image_keys(context, n))
    return ConnectorOutput(self.end(x.reshape(b, n, *x.shape[1:])))

  @property
  def rate(self) -> float:
    """Of dropout."""
    return self.dropout

  def runner(self, memory_width: int) -> Layers:
    """The layers, for features of this width."""
    return Layers(
        depth=self.depth, period=self.period, width=self.width,
        heads=self.heads, mlp_width=self.mlp_width, memory_width=memory_width,
        queries=self.queries, text=self.text, dropout=self.rate,
        dtype=self.dtype, layout=self.layout, name="stack")

  def begin(self, context: Context) -> tuple[jax.Array, jax.Array]:
    """The input of the first layer for each sample: f[B,S,L,E], b[B,S,L].

    Without text all samples are alike; S is then N.
    """
    e, b = self.width, context.image_segment_ids.shape[0]
    ids = context.extras["instruction"] if self.text else None
    samples = ids.shape[1] if self.text else context.image_segment_ids.shape[1]
    queries = self.param("queries_te", nn.initializers.normal(0.02),
                         (self.queries, e)).astype(self.dtype)
    x = jnp.broadcast_to(queries, (b, samples, *queries.shape))
    mask = jnp.ones(x.shape[:3], bool)
    if self.text:
      words_ve = self.param("words_ve", nn.initializers.normal(0.02),
                            (self.words, e))
      positions_le = self.param("positions_le", nn.initializers.normal(0.02),
                                (self.positions, e))
      length = ids.shape[2]
      text = embed_lookup(words_ve, ids.reshape(b, -1), dtype=self.dtype,
                          layout=self.layout)
      text = (text.reshape(*ids.shape, e)
              + positions_le[:length].astype(self.dtype))
      x = jnp.concatenate([x, text], axis=2)
      mask = jnp.concatenate([mask, ids != 0], axis=2)
    return self.normed(x, context), mask

  def normed(self, x: jax.Array, context: Context) -> jax.Array:
    """Embeddings f[B,S,L,E] as they enter the first layer."""
    size = (self.width,)
    x = layer_norm(x, self.param("norm_scale_e", nn.initializers.ones, size),
                   self.param("norm_bias_e", nn.initializers.zeros, size),
                   _EPS)
    keys = context.keys
    if keys is not None:
      keys = jax.vmap(lambda key: jax.random.fold_in(key, 1 << 20))(keys)
    return self.layout.constrain(_dropped(x, self.rate, keys, 0), "b...")

  def end(self, x: jax.Array) -> jax.Array:
    """The last layer's f[B,N,L,E] -> tokens f[B,N,queries,D]."""
    out_ed = self.param("out_ed", nn.initializers.normal(0.02),
                        (self.width, self.dim_out)).astype(self.dtype)
    out_d = self.param("out_bias_d", nn.initializers.zeros,
                       (self.dim_out,)).astype(self.dtype)
    tokens = x[:, :, :self.queries] @ out_ed + out_d
    return self.layout.constrain(tokens, "b...")


def sample_of(context: Context, samples: int, fields: bool) -> jax.Array:
  """i32[B,N]: the place of each image's sample among `samples`.

  Where samples have fields in the batch (`fields`) these lie in the order of
  segments; else only samples with images count, in their order. Empty slots
  have 0.
  """
  segments = context.image_segment_ids
  if fields:
    place = segments - 1
  else:
    before = jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
    place = jnp.cumsum((segments != before) & (segments > 0), axis=1) - 1
  return jnp.where(segments > 0, jnp.clip(place, 0, samples - 1), 0)


def take_samples(x: jax.Array, places: jax.Array) -> jax.Array:
  """Of samples [B,S,...], places i32[B,N] -> of images [B,N,...]."""
  if x.shape[1] == 1:
    return jnp.broadcast_to(x, (*places.shape, *x.shape[2:]))
  index = places.reshape(*places.shape, *[1] * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1)


def image_keys(context: Context, slots: int,
               stream: int = 0) -> jax.Array | None:
  """keys[B*N]: a key for each slot of each row, other ones in each stream."""
  if context.keys is None:
    return None

  def of_row(key: jax.Array) -> jax.Array:
    key = jax.random.fold_in(key, stream)
    return jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(slots))

  return jax.vmap(of_row)(context.keys).reshape(-1)


def flat(x: jax.Array) -> jax.Array:
  """[B,N,...] -> [B*N,...]."""
  return x.reshape(-1, *x.shape[2:])
