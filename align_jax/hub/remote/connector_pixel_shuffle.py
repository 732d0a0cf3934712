"""Neighbouring patches joined into one token: InternVL's and Idefics3's."""

from torch import nn


class _Projection(nn.Module):
  def __init__(self, wide, width):
    super().__init__()
    self.proj = nn.Linear(wide, width, bias=False)

  def forward(self, x):
    return self.proj(x)


class Connector(nn.Module):
  """Options: form ("internvl" or "idefics3"), factor (patches on an edge)."""

  def __init__(self, config):
    super().__init__()
    options, width = config.connector_options, config.text_config.hidden_size
    self.factor, self.form = options["factor"], options["form"]
    wide = config.vision_config.hidden_size * self.factor ** 2
    if self.form == "idefics3":
      self.modality_projection = _Projection(wide, width)
    else:
      self.layer_norm = nn.LayerNorm(wide)
      self.linear_1 = nn.Linear(wide, width)
      self.linear_2 = nn.Linear(width, width)

  def forward(self, features, context):
    """[images, patches, C] -> [images, patches / factor^2, D]."""
    images, patches, width = features.shape
    side, f = round(patches ** 0.5), self.factor
    x = features.reshape(images, side // f, f, side // f, f, width)
    x = x.transpose(2, 3).reshape(images, patches // f ** 2, -1)
    if self.form == "idefics3":
      return self.modality_projection(x)
    x = nn.functional.gelu(self.linear_1(self.layer_norm(x)))
    return self.linear_2(x)
