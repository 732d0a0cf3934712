"""D-Abstractor, a connector of Honeybee (arXiv 2312.06742): layers of
Deformable DETR (arXiv 2010.04159)."""

import torch
from torch import nn


class _SelfAttention(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.q_proj = nn.Linear(width, width)
    self.k_proj = nn.Linear(width, width)
    self.v_proj = nn.Linear(width, width)
    self.out_proj = nn.Linear(width, width)

  def forward(self, x, places):
    q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (
        self.q_proj(x + places), self.k_proj(x + places), self.v_proj(x)))
    y = nn.functional.scaled_dot_product_attention(q, k, v)
    return self.out_proj(y.transpose(1, 2).flatten(2))


class _Look(nn.Module):
  """A few points near a query's own place, moved by learned offsets."""

  def __init__(self, width, heads, points):
    super().__init__()
    self.heads, self.points = heads, points
    self.value_proj = nn.Linear(width, width)
    self.sampling_offsets = nn.Linear(width, heads * points * 2)
    self.attention_weights = nn.Linear(width, heads * points)
    self.output_proj = nn.Linear(width, width)

  def forward(self, x, patches, reference):
    images, queries, width = x.shape
    h, o = self.heads, self.points
    side = round(patches.shape[1] ** 0.5)
    value = self.value_proj(patches).reshape(images, side, side, h, -1)
    value = value.permute(0, 3, 4, 1, 2).flatten(0, 1)
    moves = self.sampling_offsets(x).reshape(images, queries, h, o, 2)
    at = reference[None, :, None, None] + moves / side  # shares of the image
    at = at.permute(0, 2, 1, 3, 4).flatten(0, 1)
    seen = nn.functional.grid_sample(value, 2 * at - 1, mode="bilinear",
                                     padding_mode="zeros",
                                     align_corners=False)
    shares = self.attention_weights(x).reshape(images, queries, h, o)
    shares = torch.softmax(shares.float(), -1).to(x.dtype)
    shares = shares.permute(0, 2, 1, 3).flatten(0, 1)[:, None]
    y = (seen * shares).sum(-1).unflatten(0, (images, h))
    return self.output_proj(y.permute(0, 3, 1, 2).flatten(2))


class _Layer(nn.Module):
  def __init__(self, width, heads, points, hidden):
    super().__init__()
    self.self_attn = _SelfAttention(width, heads)
    self.self_attn_layer_norm = nn.LayerNorm(width)
    self.encoder_attn = _Look(width, heads, points)
    self.encoder_attn_layer_norm = nn.LayerNorm(width)
    self.fc1 = nn.Linear(width, hidden)
    self.fc2 = nn.Linear(hidden, width)
    self.final_layer_norm = nn.LayerNorm(width)

  def forward(self, x, places, patches, reference):
    x = self.self_attn_layer_norm(x + self.self_attn(x, places))
    y = self.encoder_attn(x + places, patches, reference)
    x = self.encoder_attn_layer_norm(x + y)
    return self.final_layer_norm(x + self.fc2(torch.relu(self.fc1(x))))


class Connector(nn.Module):
  """Options: patches, latents (a square number), width, depth, heads, points,
  hidden."""

  def __init__(self, config):
    super().__init__()
    options, out = config.connector_options, config.text_config.hidden_size
    c, e, m = (config.vision_config.hidden_size, options["width"],
               options["latents"])
    self.small = round(m ** 0.5)
    self.input_proj = nn.Sequential(nn.Linear(c, e) if c != e
                                    else nn.Identity())
    self.v_pos_emb = nn.Parameter(torch.zeros(1, options["patches"], e))
    self.query_position_embeddings = nn.Embedding(m, e)
    self.reference_points = nn.Parameter(torch.zeros(1, m, 2))
    self.layers = nn.ModuleList([
        _Layer(e, options["heads"], options["points"], options["hidden"])
        for _ in range(options["depth"])])
    self.output_proj = nn.Linear(e, out)

  def forward(self, features, context):
    """[images, patches, C] -> [images, latents, D]."""
    x = self.input_proj(features) + self.v_pos_emb
    side = round(x.shape[1] ** 0.5)
    grid = x.transpose(1, 2).unflatten(2, (side, side))
    places = nn.functional.adaptive_avg_pool2d(grid, self.small)
    places = places.flatten(2).transpose(1, 2)
    y = self.query_position_embeddings.weight.expand(len(x), -1, -1)
    for layer in self.layers:
      y = layer(y, places, x, self.reference_points[0])
    return self.output_proj(y)
