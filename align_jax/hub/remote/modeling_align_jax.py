"""A vision-language model trained with align_jax, for transformers 5.

  model = AutoModelForImageTextToText.from_pretrained(
      FOLDER, trust_remote_code=True)
  processor = AutoProcessor.from_pretrained(FOLDER)

It is LLaVA with another connector between vision tower and language model;
processor, generation and everything else are LLaVA's.
"""

import torch
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration


class AlignJaxConfig(LlavaConfig):
  """LLaVA's config with two fields more.

  connector          the name of a class in CONNECTORS, below
  connector_options  its options
  """
  model_type = "align_jax"


class Align(nn.Module):
  """AlignVLM (arXiv 2502.01341): each visual token is a weighted mean of the
  language model's own word embeddings.

    softmax(LN(W2 LN(W1 features))) @ embeddings

  Options: relu (after the first norm), out_norm (on the mean), tied_w2 (W2 is
  the language model's head), affine (of the norms), biases (of W1 and W2).
  """

  def __init__(self, config):
    super().__init__()
    width = config.text_config.hidden_size
    options = config.connector_options
    self.words = options["vocab_size"]
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

  def forward(self, features, embeddings, head):
    """[images, patches, C] -> [images, patches, D]."""
    hidden = self.norm1(self.w1(features))
    if self.relu:
      hidden = torch.relu(hidden)
    # Rows after the words are of the image token, which is no word.
    table = head[:self.words] if self.w2 is None else self.w2.weight
    logits = nn.functional.linear(hidden, table, self.w2_bias)
    weights = torch.softmax(self.norm2(logits).float(), dim=-1)
    words = embeddings[:self.words]
    return self.out_norm(weights.to(words.dtype) @ words)


class Linear(nn.Linear):
  """One linear map."""

  def __init__(self, config):
    super().__init__(config.vision_config.hidden_size,
                     config.text_config.hidden_size)

  def forward(self, features, embeddings, head):
    return super().forward(features)


class MLP(nn.Module):
  """LLaVA-1.5's: two linear maps around an activation."""

  def __init__(self, config):
    super().__init__()
    width = config.text_config.hidden_size
    self.linear_1 = nn.Linear(config.vision_config.hidden_size, width)
    self.linear_2 = nn.Linear(width, width)
    self.act = {"gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"),
                "none": nn.Identity()}[config.connector_options["activation"]]

  def forward(self, features, embeddings, head):
    return self.linear_2(self.act(self.linear_1(features)))


CONNECTORS = {"align": Align, "linear": Linear, "mlp": MLP}


class _Connected(nn.Module):
  """A connector that is handed what it needs of the rest of its model."""

  def __init__(self, config, model):
    super().__init__()
    self.connector = CONNECTORS[config.connector](config)
    self.after_norm = config.connector_options["after_norm"]
    # A function, so that the model is no part of its own part.
    self._model = lambda: model

  def forward(self, features):
    model = self._model()
    if self.after_norm:  # LLaVA takes features before the tower's last norm
      tower = model.model.vision_tower
      norm = getattr(tower, "post_layernorm", None)
      features = (tower.layernorm if norm is None else norm)(features)
    return self.connector(features, model.get_input_embeddings().weight,
                          model.get_output_embeddings().weight)


class AlignJaxForConditionalGeneration(LlavaForConditionalGeneration):
  """LLaVA whose projector is one of CONNECTORS."""
  config_class = AlignJaxConfig

  def __init__(self, config):
    super().__init__(config)
    self.model.multi_modal_projector = _Connected(config, self)
    self.post_init()
