"""ALIGN, the connector of AlignVLM (arXiv 2502.01341, section 3.1).

  features --W1--> LN --W2 (starts as the LM head)--> LN --softmax--> P
  tokens = P @ E, E the LLM's own embedding table

Each visual token is a weighted mean of word embeddings, so it lies in their
convex hull.

Where the paper is silent, or the code that was released with it does
otherwise, there is a flag; `preset` sets all of them at once, and a flag that
is given beside it wins:

  preset         what it is
  paper          Eq. 1 and 2 as written
  released_code  a ReLU after the first norm, a norm on the output (so tokens
                 leave the hull), biases, no gradient into E
  recommended    what we measured to be best: the paper's flags, to be used
                 with a decoder that trains, or with learned prompt tokens
                 (see the figures below)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.connectors.protocol import Connector, ConnectorOutput, Context
from align_jax.errors import InputError
from align_jax.ops.cost import Product
from align_jax.ops.norms import layer_norm
from align_jax.ops.vocab_mix import vocab_mix, vocab_probs
from align_jax.registry import nearest

_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class Flags:
  """What the paper leaves open; the defaults are the paper's form.

  Attributes:
    relu: a ReLU after the first norm.
    out_norm: a LayerNorm over the width of a token, after the mix.
    tied_w2: W2 is the LLM's live head itself. Otherwise it is a copy of its
      own, since the paper's appendix counts "an additional LM head layer".
    embed_gradient: gradient flows into E, where the decoder trains. Not
      stated; the plain reading of Eq. 2.
    affine: the norms have a scale and a bias. Not stated; usual.
    biases: W1 and W2 have one. The equations have none.
    logit_gain: of the norm over the vocabulary, at the start. 1 is the paper
      as written, and starts almost uniform over the words.
  """
  relu: bool = False
  out_norm: bool = False
  tied_w2: bool = False
  embed_gradient: bool = True
  affine: bool = True
  biases: bool = False
  logit_gain: float = 1.0


# What `recommended` rests on, with SmolLM2-135M (49,152 words) and its small
# tower. `align-jax inspect start --config quickstart:connector=align` says how
# it starts ("apart": how far tokens lie from their mean, in the distance of
# words from theirs; "words": so many carry 90 % of a token):
#
#   gain    apart  cosine   words
#      1    0.083   0.996  30,289   the paper as written: tokens all alike
#      2    0.219   0.951  11,353
#      3    0.483   0.619   1,240
#      4    0.730   0.379      63
#      6    0.970   0.270       4   few words get any gradient
#
# Nothing else of a start matters but where W1 points and the shape of W2's
# rows: the norms take away W1's and W2's scale, the first norm's gain, and
# whatever W2's rows have in common, so a head with centred rows starts the
# same (tests/connectors/test_align.py).
#
# Telling tokens apart at the start did not make it train sooner. Loss in steps
# 1-10, 11-20 and 21-25 (the decoder frozen, one row of 160 tokens a step,
# constant rate 2e-3, one seed; prompt: 8 learned tokens at 1e-2):
#
#   gain 1                            5.45  4.84  3.94
#   gain 3                            8.06  5.00  4.22
#   gain 1, W2 at 5e-5                5.74  5.39  4.85
#   gain 1, W2 at 5e-5, prompt        3.96  2.89  2.69
#   gain 3, W2 at 5e-5, prompt        7.47  3.52  2.88
#   mlp, prompt                       3.14  1.44  1.15
#
# How it ends was tried on the documents of configs/mini/alignvlm.py (2,048
# words, 500 steps in which the language model learns too, one seed, 600
# questions on validation documents; 21.8 % are answered by the question
# alone, and `mlp_wide` reached 43.3 %):
#
#   gain 1, at 2e-3            34.2 %    at 8e-3   28.0
#   gain 3, at 2e-3            33.2
#   released_code, at 2e-3     25.7
#
# So `recommended` has the paper's flags, and what it recommends beside them
# is a language model that learns with it, as the paper has it; or else
# `model.prompt_tokens = 8` with "prompt_xd" trained.
PRESETS: dict[str, Flags] = {
    "paper": Flags(),
    "released_code": Flags(relu=True, out_norm=True, embed_gradient=False,
                           biases=True),
    "recommended": Flags(),
}


TABLES = ("words", "random")


def flags_of(preset: str, given: Mapping[str, Any]) -> Flags:
  """A preset's flags, but for those given (None: as the preset has it).

  Raises:
    InputError: no such preset.
  """
  if preset not in PRESETS:
    raise InputError(f"connector 'align' has no preset {preset!r}"
                     f"{nearest(preset, PRESETS)} (known: "
                     f"{', '.join(PRESETS)})")
  names = [f.name for f in dataclasses.fields(Flags)]
  return dataclasses.replace(PRESETS[preset], **{
      n: given[n] for n in names if given.get(n) is not None})


def random_table(embed_vd: jax.Array) -> jax.Array:
  """Gaussian rows with the mean and covariance of a table's, f[V,D].

  The same at every call, for tables of one size; no gradient goes through.
  """
  x = jax.lax.stop_gradient(embed_vd).astype(jnp.float32)
  mean = x.mean(0)
  centred = x - mean
  values, vectors_dd = jnp.linalg.eigh(centred.T @ centred / len(x))
  noise = jax.random.normal(jax.random.key(0), x.shape)
  # Of just this mean and covariance, not of theirs in the limit.
  noise = noise - noise.mean(0)
  spread, turned_dd = jnp.linalg.eigh(noise.T @ noise / len(x))
  white = noise @ (turned_dd * jax.lax.rsqrt(jnp.maximum(spread, 1e-12)))
  rows = white * jnp.sqrt(jnp.maximum(values, 0)) @ vectors_dd.T + mean
  return rows.astype(embed_vd.dtype)


class Align(Connector):
  """Eq. 1 and 2: softmax(LN(W2 LN(W1 f))) @ E, a visual token a patch.

  Parameters: `w1_cd` f[C,D]; `norm1_scale_d`, `norm1_bias_d`; `w2_vd` f[V,D],
  unless it is tied; `norm2_scale_v`, `norm2_bias_v`; by flags `w1_bias_d`,
  `w2_bias_v`, `out_norm_scale_d`, `out_norm_bias_d`.

  Not stated in the paper, ours: eps 1e-5, W1 lecun-normal.

  Attributes:
    preset: "paper", "released_code" or "recommended".
    relu, out_norm, tied_w2, embed_gradient, affine, biases, logit_gain: see
      `Flags`; None is what the preset says.
    w2_start: "head", a copy of the LM head, or "random": the control that
      tells what the copy is worth.
    table: "words", the LLM's own, or "random": one of as many rows with its
      mean and covariance, the control that tells what the words are worth.
    keep_words: the only words that are mixed, by their numbers; () is all.
      `align-jax inspect words` finds those that carry the mass.
    norm_kept: the norm over the vocabulary, too, sees the kept words alone.
      That is the cheaper form to train; without it the logits are those of
      the whole vocabulary, as when words are removed after training.
  """
  keeps_grid = True
  preset: str = "paper"
  relu: bool | None = None
  out_norm: bool | None = None
  tied_w2: bool | None = None
  embed_gradient: bool | None = None
  affine: bool | None = None
  biases: bool | None = None
  logit_gain: float | None = None
  w2_start: str = "head"
  table: str = "words"
  keep_words: tuple[int, ...] = ()
  norm_kept: bool = False

  @classmethod
  def copied_from_decoder(cls, preset: str = "paper", w2_start: str = "head",
                          **options: Any) -> dict[str, str]:
    """W2 starts as the LM head (the tied embedding where there is none).

    Raises:
      InputError: no such preset or start.
    """
    starts = ("head", "random")
    if w2_start not in starts:
      raise InputError(f"connector 'align': w2_start {w2_start!r} is none of "
                       f"{', '.join(starts)}{nearest(w2_start, starts)}")
    if flags_of(preset, options).tied_w2 or w2_start == "random":
      return {}
    return {"w2_vd": "head_vd"}

  @classmethod
  def products(cls, patches: int, width: int, dim_out: int, vocab_size: int,
               /, keep_words: tuple[int, ...] = (), **options: Any
               ) -> list[Product]:
    """W1, W2 and the mean of embeddings: 2 P (C D + 2 V D) an image.

    The backward pass computes the logits again. The Gram matrix of the norm,
    2 V D^2 a step shared by all devices, belongs to no image.
    """
    del options
    words = 2.0 * patches * (len(keep_words) or vocab_size) * dim_out
    return [Product(2.0 * patches * width * dim_out, "w1_cd"),
            Product(words, "w2_vd", again=words),
            Product(words, "/decoder/embed_vd")]

  def flags(self) -> Flags:
    """The preset's, but for those given."""
    return flags_of(self.preset, {
        f.name: getattr(self, f.name) for f in dataclasses.fields(Flags)})

  @nn.compact
  def __call__(self, features: jax.Array, image_mask: jax.Array,
               context: Context) -> ConnectorOutput:
    """features f[B,N,P,C] -> tokens f[B,N,P,D].

    aux["probs_tv"] f32[B,N,P,V] is Eq. 1, for inspection. Under jit it costs
    nothing to whoever does not use it.

    Raises:
      InputError: a table of another vocabulary than W2's, or words to keep
        that it does not have.
    """
    del image_mask
    flags, width, vocab = self.flags(), self.dim_out, self.vocab_size
    self._check(flags, context)
    b, n, p, c = features.shape
    zeros = nn.initializers.zeros
    h = features.astype(self.dtype) @ self.param(
        "w1_cd", nn.initializers.lecun_normal(), (c, width)).astype(self.dtype)
    if flags.biases:
      h = h + self.param("w1_bias_d", zeros, (width,)).astype(self.dtype)
    h = layer_norm(h, *self._affine("norm1", "d", width), eps=_EPS)
    h = nn.relu(h) if flags.relu else h
    h = self.layout.constrain(h.reshape(b, n * p, width), "b..")

    if flags.tied_w2:
      w2_vd = context.head_vd
    else:
      w2_vd = self.param("w2_vd", nn.initializers.normal(0.02),
                         (vocab, width))
    scale_v, bias_v = self._affine("norm2", "v", vocab, flags.logit_gain)
    if flags.biases:
      # The bias of W2 is one more column of it, met by a one.
      bias = self.param("w2_bias_v", zeros, (vocab,))
      w2_vd = jnp.concatenate([w2_vd, bias[:, None].astype(w2_vd.dtype)], 1)
      h = jnp.concatenate([h, jnp.ones_like(h[..., :1])], -1)
    embed_vd = context.embed_vd
    if self.table == "random":
      embed_vd = random_table(embed_vd)
    if not flags.embed_gradient:
      embed_vd = jax.lax.stop_gradient(embed_vd)
    options = dict(layout=self.layout, eps=_EPS, norm_kept=self.norm_kept)
    if self.keep_words:
      options["keep"] = jnp.asarray(self.keep_words, jnp.int32)
    tokens = vocab_mix(h, w2_vd, scale_v, bias_v, embed_vd, **options)
    if context.embed_scale != 1.0:  # the hull of what the LLM reads
      tokens = tokens * jnp.asarray(context.embed_scale, tokens.dtype)
    probs = vocab_probs(h, w2_vd, scale_v, bias_v, **options)
    if flags.out_norm:
      tokens = layer_norm(tokens, *self._affine("out_norm", "d", width),
                          eps=_EPS)
    return ConnectorOutput(tokens.reshape(b, n, p, width),
                           {"probs_tv": probs.reshape(b, n, p, vocab)})

  def _affine(self, name: str, letter: str, size: int, gain: float = 1.0
              ) -> tuple[jax.Array | None, jax.Array | None]:
    """Scale and bias of a norm, where it has them."""
    if not self.flags().affine:
      return (None if gain == 1.0 else jnp.full(size, gain)), None
    init = nn.initializers
    return (self.param(f"{name}_scale_{letter}", init.constant(gain), (size,)),
            self.param(f"{name}_bias_{letter}", init.zeros, (size,)))

  def _check(self, flags: Flags, context: Context) -> None:
    if self.table not in TABLES:
      raise InputError(f"connector 'align': table {self.table!r} is none of "
                       f"{', '.join(TABLES)}{nearest(self.table, TABLES)}")
    words = context.embed_vd.shape[0]
    if words != self.vocab_size:
      raise InputError(
          f"the embedding table has {words:,} words, the connector's W2 "
          f"{self.vocab_size:,}: ALIGN mixes the one by the other's softmax, "
          "so head and table must have one vocabulary")
    if flags.tied_w2 and context.head_vd is None:
      raise InputError("tied_w2 needs the decoder's head, and the context "
                       "has none")
    kept = set(self.keep_words)
    wrong = sorted(w for w in kept if not 0 <= w < self.vocab_size)
    if wrong:
      raise InputError(f"keep_words: a vocabulary of {self.vocab_size:,} has "
                       f"no word {', '.join(map(str, wrong[:5]))}")
    if len(kept) < len(self.keep_words):
      raise InputError("keep_words: a word is named more than once")
