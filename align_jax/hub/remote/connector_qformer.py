"""The Q-Former of BLIP-2 and InstructBLIP, and SAM's guidance around it.

SAM (arXiv 2408.12867): the images of one prompt guide each other. While image
i is read, a second stream reads a memory of the prompt's images; before layer
l the first stream guides the second, before layer k the second the first.
"""

import torch
from torch import nn
from transformers import (
  Blip2QFormerConfig,
  Blip2QFormerModel,
  InstructBlipQFormerConfig,
  InstructBlipQFormerModel,
)


class Connector(nn.Module):
  """Options: queries, depth, period, width, heads, mlp_width, text (reads the
  instruction), words, positions; guidance: None or l, k, memory ("all",
  "others", "self") and guided (positions from the first; 0 is all)."""

  def __init__(self, config):
    super().__init__()
    options = config.connector_options
    width, c = options["width"], config.vision_config.hidden_size
    self.text, self.guidance = options["text"], options["guidance"]
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
    if self.guidance:
      self.score = nn.Linear(c, 1)
      self.guide_h = nn.Linear(width, width)
      self.guide_c = nn.Linear(width, width)

  def forward(self, features, context):
    """[images, patches, C] -> [images, queries, D]."""
    x, mask = self.begin(features, context)
    layers = self.qformer.encoder.layer

    def run(x, memory, first, last):
      for layer in layers[first:last]:
        x = layer(x, attention_mask=mask, encoder_hidden_states=memory,
                  query_length=self.query_tokens.shape[1])
      return x

    if not self.guidance:
      x = run(x, features, 0, len(layers))
    else:
      l, k = self.guidance["l"], self.guidance["k"]
      memory, alone = self.memory(features, context.samples)
      q = run(x, features, 0, l - 1)
      w = run(x, memory, 0, l - 1) + self.guide(self.guide_h, q)
      w = run(w, memory, l - 1, k)
      q = run(q, features, l - 1, k - 1)
      back = self.guide(self.guide_c, w) * ~alone[:, None, None]
      x = run(q + back, features, k - 1, len(layers))
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

  def memory(self, features, samples):
    """(what the second stream of each image reads, whether it is alone)."""
    together = samples[:, None] == samples[None]
    seen, itself = together, torch.eye(
        len(samples), dtype=torch.bool, device=samples.device)
    if self.guidance["memory"] == "others":
      seen = together & ~itself
    elif self.guidance["memory"] == "self":
      seen = itself
    scores = self.score(features).squeeze(-1).float()
    scores = scores[None].masked_fill(~seen[..., None], float("-inf"))
    shares = torch.softmax(scores, dim=1).nan_to_num(0).to(features.dtype)
    memory = torch.einsum("ijp,jpc->ipc", shares, features)
    return memory, together.sum(1) < 2

  def guide(self, weight, x):
    """Adds nothing behind the positions that are guided."""
    added = weight(x)
    if count := self.guidance["guided"]:
      added = torch.cat([added[:, :count],
                         torch.zeros_like(added[:, count:])], dim=1)
    return added
