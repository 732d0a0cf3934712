"""ALIGN, the connector of AlignVLM (arXiv 2502.01341)."""

import torch
from torch import nn


class Connector(nn.Module):
  """Each visual token is a weighted mean of the language model's own words.

    softmax(LN(W2 LN(W1 features))) @ embeddings

  Options: relu (after the first norm), out_norm (on the mean), tied_w2 (W2 is
  the language model's head), affine (of the norms), biases (of W1 and W2),
  embed_scale (what the language model multiplies its embeddings with).
  """

  def __init__(self, config):
    super().__init__()
    width = config.text_config.hidden_size
    options = config.connector_options
    self.words, self.scale = options["vocab_size"], options["embed_scale"]
    self.relu, affine = options["relu"], options["affine"]
    self.w1 = nn.Linear(config.vision_config.hidden_size, width,
                        bias=options["biases"])
    self.norm1 = nn.LayerNorm(width, eps=1e-5, elementwise_affine=affine)
    self.w2 = None if options["tied_w2"] else nn.Linear(
        width, self.words, bias=False)
    self.w2_bias = nn.Parameter(
        torch.zeros(self.words)) if options["biases"] else None
    self.norm2 = nn.LayerNorm(self.words, eps=1e-5, elementwise_affine=affine)
    self.out_norm = nn.LayerNorm(
        width, eps=1e-5,
        elementwise_affine=affine) if options["out_norm"] else nn.Identity()

  def forward(self, features, context):
    """[images, patches, C] -> [images, patches, D]."""
    hidden = self.norm1(self.w1(features))
    if self.relu:
      hidden = torch.relu(hidden)
    # Rows after the words are of the image token, which is no word.
    table = context.head[:self.words] if self.w2 is None else self.w2.weight
    logits = nn.functional.linear(hidden, table, self.w2_bias)
    weights = torch.softmax(self.norm2(logits).float(), dim=-1)
    words = context.embeddings[:self.words]
    return self.out_norm(weights.to(words.dtype) @ words * self.scale)
