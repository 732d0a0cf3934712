"""Perceiver resamplers: a few learned latents read an image's patches.

OpenFlamingo's (arXiv 2308.01390) with one linear map to the language model's
width, and Idefics2's (arXiv 2405.02246), which transformers has; SAM's guidance
around either.
"""

import torch
from torch import nn
from transformers import Idefics2Config
from transformers.models.idefics2.modeling_idefics2 import Idefics2Connector

from .guidance_align_jax import Guidance


class _Attention(nn.Module):
  def __init__(self, width, heads, head_width):
    super().__init__()
    self.heads, inner = heads, heads * head_width
    self.norm_media = nn.LayerNorm(width)
    self.norm_latents = nn.LayerNorm(width)
    self.to_q = nn.Linear(width, inner, bias=False)
    self.to_kv = nn.Linear(width, 2 * inner, bias=False)
    self.to_out = nn.Linear(inner, width, bias=False)

  def forward(self, patches, latents):
    latents = self.norm_latents(latents)
    read = torch.cat([self.norm_media(patches), latents], dim=1)
    q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (
        self.to_q(latents), *self.to_kv(read).chunk(2, dim=-1)))
    y = nn.functional.scaled_dot_product_attention(q, k, v)
    return self.to_out(y.transpose(1, 2).flatten(2))


class _Layer(nn.ModuleList):
  """Attention and an MLP, each with a residual."""

  def forward(self, x, patches):
    attend, feed = self
    x = x + attend(patches, x)
    return x + feed(x)


class Connector(nn.Module):
  """Options: form ("openflamingo" or "idefics2"), latents, depth, heads,
  kv_heads, head_width, in_width (of Idefics2's first MLP); guidance: None, or
  Guidance's own."""

  def __init__(self, config):
    super().__init__()
    options = config.connector_options
    width = config.vision_config.hidden_size
    out = config.text_config.hidden_size
    self.form, inner = options["form"], (
        out if options["form"] == "idefics2" else width)
    self.guidance = Guidance(options["guidance"], inner, inner) if (
        options["guidance"]) else None
    if self.form == "idefics2":
      sizes = Idefics2Config(
          vision_config=dict(hidden_size=width),
          perceiver_config=dict(
              hidden_size=out, resampler_n_latents=options["latents"],
              resampler_depth=options["depth"],
              resampler_n_heads=options["heads"],
              resampler_head_dim=options["head_width"],
              num_key_value_heads=options["kv_heads"]),
          text_config=dict(model_type="mistral", hidden_size=out,
                           intermediate_size=options["in_width"]))
      sizes.perceiver_config._attn_implementation = "eager"
      self.connector = Idefics2Connector(sizes)
      return
    self.latents = nn.Parameter(torch.zeros(options["latents"], width))
    self.layers = nn.ModuleList([
        _Layer([
            _Attention(width, options["heads"], options["head_width"]),
            nn.Sequential(nn.LayerNorm(width),
                          nn.Linear(width, 4 * width, bias=False), nn.GELU(),
                          nn.Linear(4 * width, width, bias=False))])
        for _ in range(options["depth"])])
    self.norm = nn.LayerNorm(width)
    self.out = nn.Linear(width, out)

  def forward(self, features, context):
    """[images, patches, C] -> [images, latents, D]."""
    end = lambda x: self.out(self.norm(x))
    parts, x = self, features
    if self.form == "idefics2":
      parts = self.connector.perceiver_resampler
      x, end = self.connector.modality_projection(features), parts.norm
    latents = parts.latents.expand(len(x), -1, -1)

    def run(latents, patches, first, last):
      for layer in parts.layers[first:last]:
        latents = layer(latents, patches)
      return latents

    if self.guidance is None:
      return end(run(latents, x, 0, len(parts.layers)))
    return end(self.guidance(run, latents, x, context.samples))
