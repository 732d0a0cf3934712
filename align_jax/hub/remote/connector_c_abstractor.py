"""C-Abstractor, a connector of Honeybee (arXiv 2312.06742)."""

import torch
from torch import nn


class _ConvNorm(nn.Module):
  """A convolution without bias and a LayerNorm over channels."""

  def __init__(self, width, out, size=1, groups=1):
    super().__init__()
    self.conv = nn.Conv2d(width, out, size, padding=size // 2, groups=groups,
                          bias=False)
    self.bn = nn.LayerNorm(out)

  def forward(self, x):
    return self.bn(self.conv(x).movedim(1, -1)).movedim(-1, 1)


class _Squeeze(nn.Module):
  """Squeeze and excitation."""

  def __init__(self, width, squeezed):
    super().__init__()
    self.fc1 = nn.Conv2d(width, squeezed, 1)
    self.fc2 = nn.Conv2d(squeezed, width, 1)

  def forward(self, x):
    y = nn.functional.silu(self.fc1(x.mean((2, 3), keepdim=True)))
    return x * torch.sigmoid(self.fc2(y))


class _Block(nn.Module):
  """RegNet's, as in timm."""

  def __init__(self, width, out):
    super().__init__()
    self.conv1 = _ConvNorm(width, out)
    self.conv2 = _ConvNorm(out, out, 3, groups=out)
    self.se = _Squeeze(out, round(width / 4))
    self.conv3 = _ConvNorm(out, out)
    self.downsample = (_ConvNorm(width, out) if width != out
                       else nn.Identity())

  def forward(self, x):
    silu = nn.functional.silu
    y = self.conv3(self.se(silu(self.conv2(silu(self.conv1(x))))))
    return silu(self.downsample(x) + y)


def _stage(width, out, depth):
  """Blocks; one that changes the width is called "first"."""
  stage = nn.Sequential()
  if width != out:
    stage.add_module("first", _Block(width, out))
  for n in range(depth - (width != out)):
    stage.add_module(str(n), _Block(out, out))
  return stage


class Connector(nn.Module):
  """Options: patches, latents (a square number), width, depth."""

  def __init__(self, config):
    super().__init__()
    options, out = config.connector_options, config.text_config.hidden_size
    width, inner = config.vision_config.hidden_size, options["width"]
    self.side = round(options["latents"] ** 0.5)
    self.pos_emb = nn.Parameter(torch.zeros(1, options["patches"], width))
    self.net = nn.Sequential(
        _stage(width, inner, options["depth"]),
        nn.AdaptiveAvgPool2d(self.side),
        _stage(inner, inner, options["depth"]))
    self.readout = nn.Sequential(nn.Linear(inner, out), nn.SiLU(),
                                 nn.Linear(out, out))

  def forward(self, features, context):
    """[images, patches, C] -> [images, latents, D]."""
    x = features + self.pos_emb
    side = round(x.shape[1] ** 0.5)
    x = self.net(x.transpose(1, 2).unflatten(2, (side, side)))
    return self.readout(x.flatten(2).transpose(1, 2))
