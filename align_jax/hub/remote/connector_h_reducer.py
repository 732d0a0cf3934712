"""H-Reducer, the connector of mPLUG-DocOwl 1.5 (arXiv 2403.12895)."""

import torch
from torch import nn


class Connector(nn.Module):
  """A token for `columns` patches of a row, and one at the end."""

  def __init__(self, config):
    super().__init__()
    width = config.vision_config.hidden_size
    out = config.text_config.hidden_size
    self.columns = j = config.connector_options["columns"]
    self.reducer_before = nn.Sequential(
        nn.Conv2d(width, j * width, (1, j), stride=(1, j)), nn.GELU())
    self.reducer = nn.Conv2d(width, width, (1, j), stride=(1, j))
    self.visual_fc = nn.Linear(width, out)
    self.vit_eos = nn.Parameter(torch.zeros(1, 1, out))

  def forward(self, features, context):
    """[images, patches, C] -> [images, patches / columns + 1, D]."""
    images, patches, width = features.shape
    side, j = round(patches ** 0.5), self.columns
    x = features.transpose(1, 2).reshape(images, width, side, side)
    x = self.reducer_before(x)
    x = x.reshape(images, j, width, side, side // j)
    x = x.permute(0, 2, 3, 4, 1).reshape(images, width, side, side)
    x = self.visual_fc(self.reducer(x).flatten(2).transpose(1, 2))
    return torch.cat([x, self.vit_eos.expand(images, -1, -1)], dim=1)
