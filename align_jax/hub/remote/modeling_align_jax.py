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
  connector_options  its options; "tokens" is how many an image becomes
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
    self.after_norm = config.connector_options["after_norm"]
    # A function, so that the model is no part of its own part.
    self._model = lambda: model
    self.samples = self.instruction = None

  def forward(self, features):
    model = self._model()
    if self.after_norm:  # LLaVA takes features before the tower's last norm
      tower = model.model.vision_tower
      norm = next(getattr(tower, name) for name in (
          "post_layernorm", "layernorm", "rms_norm") if hasattr(tower, name))
      features = norm(features)
    return self.connector(features, Context(
        model.get_input_embeddings().weight,
        model.get_output_embeddings().weight, self.samples, self.instruction))


class AlignJaxForConditionalGeneration(LlavaForConditionalGeneration):
  """LLaVA with a projector of another kind."""
  config_class = AlignJaxConfig

  def __init__(self, config):
    super().__init__(config)
    self.model.multi_modal_projector = _Connected(config, self)
    self.post_init()

  def forward(self, input_ids=None, pixel_values=None, attention_mask=None,
              position_ids=None, past_key_values=None, inputs_embeds=None,
              labels=None, logits_to_keep=0, instruction_ids=None, **kwargs):
    if pixel_values is not None and input_ids is not None:
      marks = (input_ids == self.config.image_token_id).sum(1)
      counts = marks // self.config.connector_options["tokens"]
      projector = self.model.multi_modal_projector
      projector.instruction = instruction_ids
      projector.samples = torch.arange(
          len(counts), device=counts.device).repeat_interleave(counts)
    return super().forward(
        input_ids=input_ids, pixel_values=pixel_values,
        attention_mask=attention_mask, position_ids=position_ids,
        past_key_values=past_key_values, inputs_embeds=inputs_embeds,
        labels=labels, logits_to_keep=logits_to_keep, **kwargs)
