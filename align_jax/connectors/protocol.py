"""What a connector takes and gives.

  features f[B,N,P,C] --connector--> tokens f[B,N,T,D]

A connector is a Linen module with the fields `dim_out` (D), `dtype`,
`layout`, and its own options; and the methods of `Connector`.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from align_jax.config import Config
from align_jax.data.example import Example
from align_jax.data.tiling import Frame
from align_jax.errors import InputError
from align_jax.ops.cost import Product
from align_jax.parallel.layout import Layout
from align_jax.registry import nearest


@struct.dataclass
class Context:
  """What only some connectors need.

  Attributes:
    embed_vd: f[V,D] the LLM's embedding table, the live array itself.
    image_segment_ids: i32[B,N] which sample of its row an image belongs to;
      0 marks an empty slot.
    extras: what the batch's `extras` holds (instruction tokens, labels ...):
      at least what `Connector.extras` declares; in generation just that.
    head_vd: f[V,D] the LLM's head, the live array itself: the embedding table
      where it is tied.
    embed_scale: what the LLM multiplies its embeddings of words with (Gemma);
      visual tokens enter behind that.
    keys: keys[B], a random key a row; None outside of training.
  """
  embed_vd: jax.Array
  image_segment_ids: jax.Array
  extras: dict[str, jax.Array] = struct.field(default_factory=dict)
  head_vd: jax.Array | None = None
  embed_scale: float = struct.field(pytree_node=False, default=1.0)
  keys: jax.Array | None = None


@struct.dataclass
class ConnectorOutput:
  """What a connector gives.

  Attributes:
    tokens: f[B,N,T,D].
    aux: named arrays that inspection may want; "special_xd" f[X,D], special
      tokens beside the images'.
    again: arrays [B,...] that a connector with a `feedback_layer` needs for
      its second look: "features", "image_segment_ids".
  """
  tokens: jax.Array
  aux: dict[str, Any] = struct.field(default_factory=dict)
  again: dict[str, jax.Array] = struct.field(default_factory=dict)

  def take_rows(self, rows: jax.Array) -> "ConnectorOutput":
    """What belongs to these rows i32[B]."""
    return self.replace(tokens=self.tokens[rows], again={
        name: x[rows] for name, x in self.again.items()})


class Connector(nn.Module):
  """Base of all connectors.

  Attributes:
    dim_out: D, the LLM's width.
    vocab_size: V, the rows of the LLM's embedding table.
    dtype: of the computation; parameters keep their own.
    layout: where activations live.

  Class attributes:
    keeps_grid: whether tokens that form a square grid are those of the blocks
      of patches at the same places, row by row; SEA and its like need that.
  and of one that adds to another:
    extends: the kind whose weights it may start from.
    added: globs over its own parameters that are not the other's, each with
      the parameter that it starts as, or "" for a start of its own.
    leaves: globs over the other's parameters that it has no use for.
  """
  keeps_grid: ClassVar[bool] = False
  extends: ClassVar[str] = ""
  added: ClassVar[Mapping[str, str]] = {}
  leaves: ClassVar[tuple[str, ...]] = ()

  dim_out: int = 0
  vocab_size: int = 0
  dtype: Any = jnp.float32
  layout: Layout = Layout()

  # Options that change what is read and not what is computed of it: weights
  # fit whatever they are.
  free = ()

  @property
  def feedback_layer(self) -> int:
    """After how many of its layers the LLM asks for a second look; 0: never.

    The connector is then called once more, with `asked` f[B,N,D]: the LLM's
    state at the last token of the prompt that each image belongs to. The
    tokens it gives are added to the LLM's states at the images' places.
    """
    return 0

  @classmethod
  def tokens_out(cls, patches: int, **options: Any) -> int:
    """T, the visual tokens of an image of `patches` patches."""
    del options
    return patches

  @classmethod
  def frame(cls, **options: Any) -> Frame:
    """Its special tokens that stand around and inside an image.

    Numbers of rows of aux["special_xd"] f[X,D], the special tokens that a
    connector gives beside the images'.
    """
    del options
    return Frame()

  @classmethod
  def copied_from_decoder(cls, **options: Any) -> dict[str, str]:
    """Parameters that start as a copy of the decoder's: {own: decoder's}.

    The source is "head_vd" (the tied embedding where there is no head of its
    own) or any other path of the decoder.
    """
    del options
    return {}

  @classmethod
  def extras(cls, config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """Fields of its own that it reads in `context.extras`.

    Args:
      config: the run's; B is config.data.rows. Parameters are made with a
        config of one small row, so their shapes must not follow B, S or L.

    Returns:
      {name: shape [B,S,...] and dtype}; see data/batch.py for what S means.
    """
    del config
    return {}

  @classmethod
  def products(cls, patches: int, width: int, dim_out: int, vocab_size: int,
               /, **options: Any) -> list[Product] | None:
    """Matrix products of one image of `patches` features of `width` (C).

    None, the default: they are counted by tracing the connector. One that
    computes more than its result needs, say in a backward pass of its own,
    declares here what it needs.
    """
    del patches, width, dim_out, vocab_size, options

  @classmethod
  def annotator(cls, **options: Any
                ) -> Callable[[Example], dict[str, np.ndarray]] | None:
    """What makes a sample's own entries of `extras`, on the host.

    Where it gives a field that the source gives as well, the source's counts.
    None: the connector makes none.
    """
    del options

  def __call__(self, features: jax.Array, image_mask: jax.Array,
               context: Context) -> ConnectorOutput:
    """features f[B,N,P,C], image_mask b[B,N] -> tokens f[B,N,T,D]."""
    raise NotImplementedError


def check_form(connector: str, form: str, known: tuple[str, ...]) -> None:
  """Refuses an option `form` that a connector does not have.

  Raises:
    InputError: naming those it has.
  """
  if form not in known:
    raise InputError(f"connector {connector!r} has no form {form!r}"
                     f"{nearest(form, known)} (known: {', '.join(known)})")
