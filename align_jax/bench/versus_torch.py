"""The same shapes in transformers + torch, to run beside ours."""

import contextlib
from typing import Any

import numpy as np

from align_jax.build import Parts
from align_jax.config import Config
from align_jax.errors import InputError


def llava(config: Config, parts: Parts) -> Any:
  """transformers' Llava of a config's sizes, with random weights, to train.

  Raises:
    InputError: parts that have no counterpart there, or no torch.
  """
  torch, transformers = imports()
  model = config.model
  if model.kind != "vlm" or model.connector.kind != "mlp":
    raise InputError("--vs hf: transformers has a counterpart of tower, mlp "
                     f"and decoder alone, not of connector "
                     f"{model.connector.kind!r} (model.kind {model.kind!r})")
  t, d = parts.model.tower.config, parts.model.decoder.config
  sizes = dict(
      hidden_size=t.width, intermediate_size=t.mlp_width,
      num_hidden_layers=t.layers, num_attention_heads=t.heads,
      image_size=t.image_size, patch_size=t.patch_size)
  kinds = {"quick_gelu": transformers.CLIPVisionConfig,
           "gelu_tanh": transformers.SiglipVisionConfig}
  if t.activation not in kinds:
    raise InputError(f"--vs hf: no counterpart of a tower with {t.activation}")
  vision = kinds[t.activation](**sizes)
  text = transformers.LlamaConfig(
      hidden_size=d.width, intermediate_size=d.mlp_width,
      num_hidden_layers=d.layers, num_attention_heads=d.heads,
      num_key_value_heads=d.kv_heads, head_dim=d.head_width,
      vocab_size=d.vocab_size, tie_word_embeddings=d.tied_head,
      rope_theta=d.rope_theta, max_position_embeddings=d.max_positions)
  made = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(
      vision_config=vision, text_config=text,
      image_token_index=d.vocab_size - 1,
      vision_feature_layer=config.model.tower.layer,
      vision_feature_select_strategy=(
          "default" if t.class_token else "full")))
  return made.to(device()).train()


def device() -> str:
  torch, _ = imports()
  return "cuda" if torch.cuda.is_available() else "cpu"


class TrainStep:
  """One step: forward, backward, clipping, AdamW, as a Trainer does it.

  Attributes:
    model: transformers' own, perhaps compiled.
    bf16: under autocast; masters stay f32.
  """

  def __init__(self, model: Any, config: Config, batch: dict[str, Any],
               parts: Parts, compiled: bool = False):
    """See the class.

    Args:
      model: of `llava`.
      config: of the run; its first stage gives rate and clipping.
      batch: ours, of numpy; one image or more a row, all rows full.
      parts: of our model.
      compiled: through torch.compile.
    """
    torch, _ = imports()
    stage = config.stages[0]
    self.torch, self.module = torch, model
    self.model = torch.compile(model) if compiled else model
    self.bf16 = config.model.dtype == "bfloat16"
    self.clip = stage.clip_norm
    self.optimizer = torch.optim.AdamW(
        model.parameters(), lr=max(stage.train.values()),
        betas=(stage.b1, stage.b2), weight_decay=stage.weight_decay)
    self.inputs = {k: v.to(device()) for k, v in inputs(
        batch, parts, torch).items()}

  def __call__(self) -> float:
    torch = self.torch
    self.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device(), torch.bfloat16, enabled=self.bf16):
      loss = self.model(**self.inputs).loss
    loss.backward()
    if self.clip:
      torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
    self.optimizer.step()
    return loss.item()  # waits for the device


def no_caches() -> contextlib.AbstractContextManager[None]:
  """Within it torch.compile finds nothing of earlier processes' on disk.

  By default its compiled graphs and kernels stay in the folder for temporary
  files and are taken up again.
  """
  imports()
  from torch._inductor.utils import fresh_cache

  return fresh_cache()


def inputs(batch: dict[str, Any], parts: Parts, torch: Any) -> dict[str, Any]:
  """Our batch as transformers wants it."""
  c = parts.model.tower.config
  image = parts.model.decoder.config.vocab_size - 1
  tokens = np.where(batch["visual_index"] >= 0, image,
                    np.minimum(batch["tokens"], image - 1))
  labels = np.full_like(tokens, -100)
  # Theirs shifts labels itself: a label stands at its own token.
  marks = batch["loss_weights"] > 0
  labels[:, 1:][marks[:, :-1]] = batch["targets"][marks]
  pixels = batch["images"].reshape(-1, *batch["images"].shape[2:]) / 255.0
  pixels = (pixels - np.asarray(c.mean)) / np.asarray(c.std)
  return dict(
      input_ids=torch.tensor(tokens, dtype=torch.long),
      attention_mask=torch.tensor(batch["segment_ids"], dtype=torch.long),
      labels=torch.tensor(labels, dtype=torch.long),
      pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2),
                                dtype=torch.float32))


def imports() -> tuple[Any, Any]:
  """torch and transformers.

  Raises:
    InputError: one of them is missing.
  """
  try:
    import torch
    import transformers
  except ImportError as error:
    raise InputError("--vs hf needs torch and transformers: "
                     f"{error}") from error
  return torch, transformers
