"""LLaVA's connectors: one linear map, or two around an activation."""

from torch import nn


class Connector(nn.Module):
  """Options: layers (1 or 2), hidden (between them), activation, norms (after
  each of them)."""

  def __init__(self, config):
    super().__init__()
    options = config.connector_options
    width = config.vision_config.hidden_size
    out = config.text_config.hidden_size
    if options["layers"] == 1:
      self.parts = [nn.Linear(width, out)]
      self.linear = self.parts[0]
    else:
      hidden, norms = options["hidden"], options["norms"]
      self.linear_1 = nn.Linear(width, hidden)
      self.norm_1 = nn.LayerNorm(hidden) if norms else nn.Identity()
      act = {"gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"),
             "none": nn.Identity()}[options["activation"]]
      self.linear_2 = nn.Linear(hidden, out)
      self.norm_2 = nn.LayerNorm(out) if norms else nn.Identity()
      self.parts = [self.linear_1, self.norm_1, act, self.linear_2,
                    self.norm_2]

  def forward(self, features, context):
    """[images, patches, C] -> [images, patches, D]."""
    for part in self.parts:
      features = part(features)
    return features
