"""A vision-language model: tower -> connector -> decoder.

  images u8[B,N,H,W,3] --normalise, tower--> features f[B,N,P,C]
                       --connector---------> visual tokens f[B,N,T,D]
  tokens i32[B,L] --embedding, insert at visual_index--> f[B,L,D]
                       --decoder-----------> hidden f[B,L,D]

The head is not applied here: the objective applies it where there are labels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.connectors.protocol import ConnectorOutput, Context
from align_jax.ops.insert_tokens import insert_tokens
from align_jax.parallel.layout import ROWS, Layout
from align_jax.towers.pixels import normalise


class VLM(nn.Module):
  """The three parts, joined.

  Attributes:
    tower: a tower, f[I,H,W,3] normalised pixels -> f[I,P,C].
    connector: see connectors/protocol.py.
    decoder: see decoders/transformer.py.
    layout: where activations live.
    scalars: learnt numbers that objectives read: (name, what it starts at).
    prompt_tokens: X', learned embeddings `prompt_xd` f[X',D] that stand before
      every sample. They are the first special tokens of a row's bank; the
      connector's own come after.
    newline: a learned embedding `newline_xd` f[1,D] between those, which ends
      each row of patches where images are cut into tiles, for any connector.
  """
  tower: nn.Module
  connector: nn.Module
  decoder: nn.Module
  layout: Layout = Layout()
  scalars: tuple[tuple[str, float], ...] = ()
  prompt_tokens: int = 0
  newline: bool = False

  def setup(self) -> None:
    self.numbers = {
        name: self.param(name, nn.initializers.constant(start), ())
        for name, start in self.scalars}
    if self.prompt_tokens:
      self.prompt = self.param(
          "prompt_xd", nn.initializers.normal(0.02),
          (self.prompt_tokens, self.decoder.config.width))
    if self.newline:
      width = self.decoder.config.width
      self.line_end = self.param(  # as LLaVA-NeXT starts it
          "newline_xd", nn.initializers.normal(width ** -0.5), (1, width))

  def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
    """The training pass.

    Args:
      batch: as in data/batch.py; "keys", keys[B], a random key a row, makes
        parts draw that do so in training.

    Returns:
      hidden f[B,L,D] after the final norm; head_vd and embed_vd f[V,D];
      logit_soft_cap, the decoder's own number; visual_tokens f[B,N,T,D];
      connector_aux, what the connector reports; scalars, by name, f32[].
    """
    visual = self.encode_images(batch)
    x = self.embed(batch["tokens"], batch["visual_index"], visual)
    hidden, _ = self.read(x, batch["positions"], batch["segment_ids"], visual,
                          batch["visual_index"], batch.get("loss_weights"))
    return {
        "hidden": hidden,
        "head_vd": self.decoder.head_vd(),
        "logit_soft_cap": self.decoder.config.logit_soft_cap,
        "embed_vd": self.decoder.embed_vd(),
        "scalars": self.numbers,
        "visual_tokens": visual.tokens,
        "connector_aux": visual.aux,
    }

  def features(self, batch: dict[str, Any]) -> jax.Array:
    """The tower's features f[B,N,P,C]; zeros for a batch without images.

    Where `images` are features already (data/features.py), those.
    """
    images, mask = batch["images"], batch["image_segment_ids"] > 0
    b, n = mask.shape
    if images.ndim == 4:
      return self.layout.constrain(images.astype(self.tower.dtype), "b...")

    def look(tower: nn.Module, images: jax.Array,
             boxes: jax.Array) -> jax.Array:
      # Images lie over every mesh axis, whatever the decoder's layout. Slots
      # are padded within a row, so that the way back stays inside the
      # devices that share the row.
      layout = self.layout
      spread = layout.shards(("tensor", "context"))
      share = max(b // layout.shards(ROWS), 1)
      slots = next(s for s in range(n, n + spread)
                   if share * s % spread == 0)
      pad = lambda x: jnp.pad(
          x, [(0, 0), (0, slots - n)] + [(0, 0)] * (x.ndim - 2)).reshape(
              b * slots, *x.shape[2:])
      flat = layout.constrain(pad(images), "i...")
      config = tower.config
      pixels = normalise(flat, pad(boxes), config.mean, config.std,
                         tower.dtype)
      features = layout.constrain(tower(pixels), "i..")
      features = features.reshape(b, slots, *features.shape[1:])[:, :n]
      return layout.constrain(features, "b...")

    if self.is_initializing():
      return look(self.tower, images, batch["image_boxes"])
    tower = self.tower
    shape = (b, n, tower.config.patches + tower.class_token,
             tower.config.width)
    return nn.cond(
        mask.any(), look,
        lambda tower, images, boxes: jnp.zeros(shape, tower.dtype),
        tower, images, batch["image_boxes"])

  def connect(self, features: jax.Array, image_segment_ids: jax.Array,
              extras: dict[str, jax.Array] | None = None,
              keys: jax.Array | None = None) -> ConnectorOutput:
    """features f[B,N,P,C] -> visual tokens f[B,N,T,D], special tokens."""
    context = Context(self.decoder.embed_vd(), image_segment_ids,
                      extras or {}, self.decoder.head_vd(),
                      self.decoder.config.embed_scale, keys)
    visual = self.connector(features, image_segment_ids > 0, context)
    own = [self.prompt] if self.prompt_tokens else []
    own += [self.line_end] if self.newline else []
    if not own:
      return visual
    special = [x.astype(visual.tokens.dtype) for x in own]
    if "special_xd" in visual.aux:
      special.append(visual.aux["special_xd"])
    return visual.replace(
        aux=visual.aux | {"special_xd": jnp.concatenate(special)})

  def encode_images(self, batch: dict[str, Any]) -> ConnectorOutput:
    """images u8[B,N,H,W,3], image_boxes, image_segment_ids -> tokens."""
    return self.connect(self.features(batch), batch["image_segment_ids"],
                        batch.get("extras"), batch.get("keys"))

  def embed(self, tokens: jax.Array, visual_index: jax.Array,
            visual: ConnectorOutput) -> jax.Array:
    """The decoder's input: f[B,L,D], text and visual tokens together."""
    b, n, t, d = visual.tokens.shape
    bank = visual.tokens.reshape(b, n * t, d)
    if "special_xd" in visual.aux:
      special = visual.aux["special_xd"]
      bank = jnp.concatenate(
          [bank, jnp.broadcast_to(special, (b, *special.shape))], axis=1)
    x = insert_tokens(self.decoder.embed(tokens), bank, visual_index)
    return self.layout.constrain(x, "bl.")

  def read(self, x: jax.Array, positions: jax.Array, segment_ids: jax.Array,
           visual: ConnectorOutput, visual_index: jax.Array,
           loss_weights: jax.Array | None = None,
           cache: Any = None) -> tuple[jax.Array, Any]:
    """Prompts whole, so that a connector may look again: see
    `Connector.feedback_layer`.

    Args:
      x: f[B,L,D], the decoder's input.
      positions: i32[B,L].
      segment_ids: i32[B,L].
      visual: what x was made with.
      visual_index: i32[B,L], likewise.
      loss_weights: f32[B,L]; a sample's prompt ends where they begin, and
        where there are none with the sample.
      cache: as the decoder takes it.

    Returns:
      (hidden f[B,L,D], cache).
    """
    layer, between = self.connector.feedback_layer, None
    if layer:
      slots = visual.again["image_segment_ids"]
      last = _prompt_ends(segment_ids, slots, loss_weights)
      context = Context(self.decoder.embed_vd(), slots)

      def look_again(hidden: jax.Array) -> jax.Array:
        asked = jnp.take_along_axis(hidden, last[..., None], axis=1)
        added = self.connector(visual.again["features"], slots > 0, context,
                               asked=asked).tokens
        bank = added.reshape(added.shape[0], -1, added.shape[-1])
        index = jnp.where(visual_index < bank.shape[1], visual_index, -1)
        return hidden + insert_tokens(jnp.zeros_like(hidden), bank, index)

      between = (layer, look_again)
    return self.decoder(x, positions, segment_ids, cache=cache,
                        between=between)

  def states(self, batch: dict[str, Any],
             visual: ConnectorOutput) -> jax.Array:
    """Prompts whole, for measuring: what each layer of the decoder gives.

    Args:
      batch: tokens, visual_index, positions, segment_ids i32[B,L].
      visual: of these rows.

    Returns:
      f[layers+1,B,L,D], of which the first is the embeddings and only the
      last is normalised.

    Raises:
      ValueError: a connector that looks again in between.
    """
    if self.connector.feedback_layer:
      raise ValueError("states of layers are not those of a connector that "
                       "looks again between them")
    x = self.embed(batch["tokens"], batch["visual_index"], visual)
    return self.decoder(x, batch["positions"], batch["segment_ids"],
                        return_all=True)[0]

  def decode(self, x: jax.Array, positions: jax.Array,
             segment_ids: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
    """One chunk of generation: f[B,L,D] -> (hidden f[B,L,D], cache)."""
    return self.decoder(x, positions, segment_ids, cache=cache)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """f[...,D] -> f32[...,V]."""
    return self.decoder.logits(hidden)


def _prompt_ends(segment_ids: jax.Array, slots: jax.Array,
                 loss_weights: jax.Array | None) -> jax.Array:
  """i32[B,N]: where the prompt of each image's sample ends in its row.

  That is the first position whose next token is supervised, or the sample's
  last.
  """
  here = segment_ids[:, None, :] == slots[:, :, None]
  places = jnp.arange(segment_ids.shape[1])
  end = jnp.where(here, places, -1).max(-1)
  if loss_weights is not None:
    marked = here & (loss_weights > 0)[:, None, :]
    end = jnp.where(marked.any(-1), marked.argmax(-1), end)
  return jnp.maximum(end, 0)
