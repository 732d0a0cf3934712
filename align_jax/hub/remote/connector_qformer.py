"""The Q-Former of BLIP-2 and InstructBLIP, and SAM's guidance around it."""

import torch
from torch import nn
from transformers import (
  Blip2QFormerConfig,
  Blip2QFormerModel,
  InstructBlipQFormerConfig,
  InstructBlipQFormerModel,
)

from .guidance_align_jax import Guidance


class Connector(nn.Module):
  """Options: queries, depth, period, width, heads, mlp_width, text (reads the
  instruction), words, positions; guidance: None, or Guidance's own."""

  def __init__(self, config):
    super().__init__()
    options = config.connector_options
    width, c = options["width"], config.vision_config.hidden_size
    self.text = options["text"]
    sizes = dict(
        hidden_size=width, num_hidden_layers=options["depth"],
        num_attention_heads=options["heads"],
        intermediate_size=options["mlp_width"], encoder_hidden_size=c,
        cross_attention_frequency=options["period"])
    if self.text:
      self.qformer = InstructBlipQFormerModel(InstructBlipQFormerConfig(
          vocab_size=options["words"],
          max_position_embeddings=options["positions"], **sizes))
    else:
      self.qformer = Blip2QFormerModel(Blip2QFormerConfig(
          use_qformer_text_input=False, **sizes))
    self.query_tokens = nn.Parameter(
        torch.zeros(1, options["queries"], width))
    self.language_projection = nn.Linear(
        width, config.text_config.hidden_size)
    self.guidance = Guidance(options["guidance"], c, width) if (
        options["guidance"]) else None

  def forward(self, features, context):
    """[images, patches, C] -> [images, queries, D]."""
    x, mask = self.begin(features, context)
    layers = self.qformer.encoder.layer

    def run(x, memory, first, last):
      for layer in layers[first:last]:
        x = layer(x, attention_mask=mask, encoder_hidden_states=memory,
                  query_length=self.query_tokens.shape[1])
      return x

    if self.guidance is None:
      x = run(x, features, 0, len(layers))
    else:
      x = self.guidance(run, x, features, context.samples)
    return self.language_projection(x[:, :self.query_tokens.shape[1]])

  def begin(self, features, context):
    """The first layer's input, and what is added to its scores."""
    queries = self.query_tokens.expand(len(features), -1, -1)
    if not self.text:
      return self.qformer.layernorm(queries), None
    if context.instruction is None:
      raise ValueError("this model reads what is asked: give instruction_ids, "
                       "as its processor's apply_chat_template does")
    ids = context.instruction[context.samples]
    x = self.qformer.embeddings(input_ids=ids, query_embeds=queries)
    there = torch.cat([torch.ones_like(ids[:, :1]).expand(
        -1, queries.shape[1]), ids != 0], dim=1)
    least = torch.finfo(x.dtype).min
    return x, (1 - there.to(x.dtype))[:, None, None] * least
