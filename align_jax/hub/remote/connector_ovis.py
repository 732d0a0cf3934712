"""Ovis (arXiv 2405.20797): a visual vocabulary with a table of its own."""

import torch
from torch import nn


class Connector(nn.Module):
  """A token for each square of patches, and those that frame an image:
  <start> tokens <grid> <end>. Of tiles the tokens alone; what stands around
  and between them is special.

  Options: words (rows of the table, indicators among them), stride (patches
  along an edge of a square), indicators (5, or 0 for none), tiled.
  """

  def __init__(self, config):
    super().__init__()
    options = config.connector_options
    self.stride, self.indicators = options["stride"], options["indicators"]
    self.tiled = options["tiled"]
    words = options["words"] - self.indicators
    self.head_linear = nn.Linear(
        config.vision_config.hidden_size * self.stride ** 2, words,
        bias=False)
    self.head_norm = nn.LayerNorm(words)
    self.visual_embeddings_table = nn.Embedding(
        options["words"], config.text_config.hidden_size)

  def forward(self, features, context):
    """[images, patches, C] -> [images, tokens, D]."""
    images, patches, width = features.shape
    side, s = round(patches ** 0.5), self.stride
    x = features.reshape(images, side, side, width)
    spare = -side % s
    x = nn.functional.pad(x, (0, 0, 0, spare, 0, spare))
    side = (side + spare) // s
    x = x.reshape(images, side, s, side, s, width).transpose(2, 3)
    x = x.reshape(images, side * side, -1)
    shares = torch.softmax(self.head_norm(self.head_linear(x)).float(), -1)
    table = self.visual_embeddings_table.weight
    count = len(table) - self.indicators
    tokens = shares.to(table.dtype) @ table[:count]
    if self.tiled or not self.indicators:
      return tokens
    start, grid, _, _, end = (
        row.expand(images, 1, -1) for row in self.special())
    return torch.cat([start, tokens, grid, end], dim=1)

  def special(self):
    """start, grid, column, row, end."""
    table = self.visual_embeddings_table.weight
    return table[len(table) - self.indicators:]
