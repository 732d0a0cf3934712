"""VPG-C of Cheetah (arXiv 2308.04152): the language model looks again."""

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel


class Connector(nn.Module):
  """BLIP-2's Q-Former, and a second look that the language model asks for.

  Between two of its layers, the state of the prompt's last token makes new
  queries; what they find in the images is added where the images stand.

  Options: queries, depth, period, width, heads, mlp_width; look_again_after,
  how many layers of the language model come before the second look.
  """

  def __init__(self, config):
    super().__init__()
    options, out = config.connector_options, config.text_config.hidden_size
    width, queries = options["width"], options["queries"]
    self.qformer = Blip2QFormerModel(Blip2QFormerConfig(
        use_qformer_text_input=False, hidden_size=width,
        num_hidden_layers=options["depth"],
        num_attention_heads=options["heads"],
        intermediate_size=options["mlp_width"],
        encoder_hidden_size=config.vision_config.hidden_size,
        cross_attention_frequency=options["period"]))
    self.query_tokens = nn.Parameter(torch.zeros(1, queries, width))
    self.language_projection = nn.Linear(width, out)
    self.query_tokens_again = nn.Parameter(torch.zeros(1, queries, width))
    self.ask = nn.Linear(out, width)
    self.tell = nn.Linear(width, out)

  def forward(self, features, context):
    """[images, patches, C] -> [images, queries, D]."""
    queries = self.query_tokens.expand(len(features), -1, -1)
    return self.language_projection(self.look(queries, features))

  def again(self, features, asked):
    """asked [images, D], the language model's state for each image -> what is
    added at its tokens, [images, queries, D]."""
    queries = self.query_tokens_again + self.ask(asked)[:, None]
    return self.tell(self.look(queries, features))

  def look(self, queries, features):
    return self.qformer(query_embeds=queries,
                        encoder_hidden_states=features).last_hidden_state
