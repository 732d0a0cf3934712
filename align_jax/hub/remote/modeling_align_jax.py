"""A vision-language model trained with align_jax, for transformers 5.

  model = AutoModelForImageTextToText.from_pretrained(
      FOLDER, trust_remote_code=True)
  processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)

It is LLaVA with another connector between vision tower and language model,
the one in connector_align_jax.py; everything else is LLaVA's.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
  AutoModel,
  InstructBlipVisionConfig,
  InstructBlipVisionModel,
  LlavaConfig,
  LlavaForConditionalGeneration,
)

from .connector_align_jax import Connector

# A tower that transformers has, and knows inside its own models alone.
AutoModel.register(InstructBlipVisionConfig, InstructBlipVisionModel,
                   exist_ok=True)


class AlignJaxConfig(LlavaConfig):
  """LLaVA's config with two fields more.

  connector          what connector_align_jax.py holds
  connector_options  its options, and:
    tokens            how many an image becomes, or a tile where it is cut
    tiled             the processor cuts images
    newline           a special token of the model's own ends rows of patches
    look_again_after  see AlignJaxForConditionalGeneration
  """
  model_type = "align_jax"


class Context(NamedTuple):
  """What a connector may read beside the tower's features.

  embeddings   [V, D] of the language model
  head         [V, D] likewise
  samples      [images], the row of the batch that an image belongs to
  instruction  [rows, L] in tokens of the connector's own, 0 for padding; or
               None
  """
  embeddings: Any
  head: Any
  samples: Any
  instruction: Any


class _Connected(nn.Module):
  """A connector that is handed what it needs of the rest of its model."""

  def __init__(self, config, model):
    super().__init__()
    self.connector = Connector(config)
    self.options = config.connector_options
    if self.options["newline"]:
      self.newline = nn.Parameter(
          torch.zeros(1, config.text_config.hidden_size))
    # A function, so that the model is no part of its own part.
    self._model = lambda: model
    self.samples = self.instruction = self.features = self.places = None

  def place(self, counts, places, tiles):
    """Which row each image or tile belongs to, and what goes where.

    counts [rows], the image tokens of each; places and tiles as the processor
    gives them.
    """
    tokens, self.places = self.options["tokens"], None
    if not self.options["tiled"]:
      rows, slots = torch.arange(len(counts)), counts.cpu() // tokens
    elif places is None or tiles is None:
      raise ValueError("this model reads images in tiles: give image_places "
                       "and image_tiles, as its processor does")
    else:
      there = places != -1
      rows = torch.searchsorted(counts.cumsum(0), there.sum(1).cumsum(0))
      first, slots = (tiles.cumsum(0) - tiles) * tokens, tiles
      self.places = torch.where(
          places < 0, tiles.sum() * tokens - 2 - places,
          places + first[:, None])[there]
    self.samples = rows.to(counts.device).repeat_interleave(
        slots.to(counts.device))

  def forward(self, features):
    model = self._model()
    if self.options["after_norm"]:  # LLaVA takes features before that norm
      tower = model.model.vision_tower
      norm = next(getattr(tower, name) for name in (
          "post_layernorm", "layernorm", "rms_norm") if hasattr(tower, name))
      features = norm(features)
    self.features = features
    tokens = self.connector(features, Context(
        model.get_input_embeddings().weight,
        model.get_output_embeddings().weight, self.samples, self.instruction))
    special = [self.newline] if self.options["newline"] else []
    if hasattr(self.connector, "special"):
      special.append(self.connector.special())
    return self.laid(tokens, special)

  def again(self, asked):
    """What is added at the image tokens, asked [rows, D]."""
    added = self.connector.again(self.features, asked[self.samples])
    special = self.options["newline"] * [torch.zeros_like(added[0, :1])]
    return self.laid(added, special)

  def laid(self, tokens, special):
    """Tokens of tiles, and special ones, in the order of their places."""
    if self.places is None:
      return tokens
    return torch.cat([tokens.flatten(0, 1), *special])[self.places][None]


class AlignJaxForConditionalGeneration(LlavaForConditionalGeneration):
  """LLaVA with a projector of another kind.

  Some connectors look at the images again in the middle of the language model,
  after "look_again_after" of its layers, asked by its state at the prompt's
  last token: where the labels begin, or else at the row's end. So prompts are
  read in one piece.
  """
  config_class = AlignJaxConfig

  def __init__(self, config):
    super().__init__(config)
    self.model.multi_modal_projector = _Connected(config, self)
    self.asking = None
    if after := config.connector_options.get("look_again_after"):
      self.model.language_model.layers[after].register_forward_pre_hook(
          self._look_again)
    self.post_init()

  def forward(self, input_ids=None, pixel_values=None, attention_mask=None,
              position_ids=None, past_key_values=None, inputs_embeds=None,
              labels=None, logits_to_keep=0, instruction_ids=None,
              image_places=None, image_tiles=None, **kwargs):
    self.asking = None
    if pixel_values is not None and input_ids is not None:
      marks = input_ids == self.config.image_token_id
      self.asking = marks, attention_mask, labels
      projector = self.model.multi_modal_projector
      projector.instruction = instruction_ids
      projector.place(marks.sum(1), image_places, image_tiles)
    return super().forward(
        input_ids=input_ids, pixel_values=pixel_values,
        attention_mask=attention_mask, position_ids=position_ids,
        past_key_values=past_key_values, inputs_embeds=inputs_embeds,
        labels=labels, logits_to_keep=logits_to_keep, **kwargs)

  def _look_again(self, layer, inputs):
    """What goes into that layer, with more at the images' tokens."""
    if self.asking is None:
      return inputs
    (hidden, *rest), (marks, there, labels) = inputs, self.asking
    ends = _prompt_ends(marks, there, labels)
    asked = hidden[torch.arange(len(ends), device=ends.device), ends]
    added = self.model.multi_modal_projector.again(asked)
    return hidden + torch.zeros_like(hidden).masked_scatter(
        marks[..., None], added.to(hidden.dtype)), *rest


def _prompt_ends(marks, there, labels):
  """[rows], the place of each prompt's last token."""
  there = torch.ones_like(marks) if there is None else there
  ends = there.shape[1] - 1 - there.flip(1).int().argmax(1)
  if labels is None:
    return ends
  next_counts = labels[:, 1:] != -100
  return torch.where(next_counts.any(1), next_counts.int().argmax(1), ends)
