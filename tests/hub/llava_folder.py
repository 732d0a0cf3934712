"""Whole LLaVA folders as transformers and torch write them, tiny, random."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import AddedToken

from align_jax.api import question
from tests.evals.tiny_run import save_tokenizer

# As llava-1.5's: contents are lists of parts, images come first.
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' ' }}"
    "{% for p in m['content'] if p['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for p in m['content'] if p['type'] == 'text' %}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ p['text'] }}"
    "{% endgeneration %}{% else %}{{ p['text'] + ' ' }}{% endif %}"
    "{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}")
PATCH, SIDE, ROWS = 4, 8, 100
GRID = [[8, 16], [16, 8], [16, 16], [24, 8]]


def scaled(model: Any, seed: int) -> Any:
  """Weights under which attention and logits are far from uniform."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      if weight.ndim == 1:
        scale = "norm" in name.lower() and "bias" not in name
        weight.normal_(float(scale), 0.3, generator=generator)
      elif any(part in name for part in ("embed", "lm_head", "newline",
                                         "query_tokens")):
        weight.normal_(0.0, 0.5, generator=generator)
      else:
        gain = 2.0 if any(part in name for part in (
            "q_proj", "k_proj", "query.weight", "key.weight")) else 1.0
        weight.normal_(0.0, gain * weight[0].numel() ** -0.5,
                       generator=generator)
  return model.eval()


def model_of(anyres: bool = False, tower: str = "clip", seed: int = 0,
             **options: Any) -> Any:
  """A random LlavaForConditionalGeneration, or LLaVA-NeXT."""
  sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=3,
               num_attention_heads=2, image_size=SIDE, patch_size=PATCH)
  vision = (transformers.CLIPVisionConfig(**sizes) if tower == "clip" else
            transformers.SiglipVisionConfig(**sizes, vision_use_head=False))
  text = transformers.LlamaConfig(
      hidden_size=24, intermediate_size=40, num_hidden_layers=2,
      num_attention_heads=4, num_key_value_heads=2, vocab_size=ROWS,
      bos_token_id=1, eos_token_id=2, pad_token_id=0)
  if tower == "siglip":
    options = dict(vision_feature_select_strategy="full") | options
  kind = "LlavaNext" if anyres else "Llava"
  if anyres:
    options["image_grid_pinpoints"] = GRID
  config = getattr(transformers, f"{kind}Config")(
      vision_config=vision, text_config=text, attn_implementation="eager",
      **options)
  return scaled(getattr(
      transformers, f"{kind}ForConditionalGeneration")(config), seed)


def processor_of(folder: Path, model: Any, bos: bool = False) -> Any:
  """Tokenizer, image processor and template for a model."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(
      save_tokenizer(folder / "words"))
  tokenizer.add_tokens([AddedToken("<image>", special=True,
                                   normalized=False)], special_tokens=True)
  if bos:
    from tokenizers import processors
    start = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = (
        processors.TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A {start} $B",
            special_tokens=[(start, tokenizer.bos_token_id)]))
  tokenizer.chat_template = None
  config = model.config
  strategy = config.vision_feature_select_strategy
  anyres = config.model_type == "llava_next"
  images = (transformers.LlavaNextImageProcessorPil(
      image_grid_pinpoints=GRID, size={"shortest_edge": SIDE},
      crop_size={"height": SIDE, "width": SIDE}) if anyres else
      transformers.CLIPImageProcessorPil(
          size={"shortest_edge": SIDE},
          crop_size={"height": SIDE, "width": SIDE}))
  kind = (transformers.LlavaNextProcessor if anyres
          else transformers.LlavaProcessor)
  return kind(image_processor=images, tokenizer=tokenizer, patch_size=PATCH,
              vision_feature_select_strategy=strategy, chat_template=TEMPLATE,
              num_additional_image_tokens=int(
                  config.vision_config.model_type == "clip_vision_model"))


def save(folder: Path, anyres: bool = False, dtype: Any = None,
         max_shard_size: str = "1GB", bos: bool = False,
         **options: Any) -> tuple[Any, Any]:
  """(model, processor), written to a folder that transformers loads."""
  model = model_of(anyres, **options)
  processor = processor_of(folder, model, bos)
  token = processor.tokenizer.convert_tokens_to_ids("<image>")
  model.config.image_token_id = token
  model.generation_config = transformers.GenerationConfig(
      bos_token_id=1, eos_token_id=processor.tokenizer.eos_token_id,
      pad_token_id=0)
  if dtype is not None:
    model.to(dtype)
  model.save_pretrained(folder, max_shard_size=max_shard_size)
  processor.save_pretrained(folder)
  processor.image_processor.save_pretrained(folder)
  return model, processor


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
  """Smooth, so that resizing is no lottery of rounding."""
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (4, 4, 3), np.uint8)
  return Image.fromarray(small).resize((width, height), Image.BICUBIC)


def theirs(model: Any, processor: Any, images: list[Any], words: str,
           steps: int = 8) -> tuple[str, Any]:
  """(the answer, the logits of the prompt) as transformers gives them."""
  content = [{"type": "image", "image": image} for image in images]
  batch = processor.apply_chat_template(
      [{"role": "user", "content": [*content, {"type": "text",
                                               "text": words}]}],
      add_generation_prompt=True, tokenize=True, return_dict=True,
      return_tensors="pt")
  with torch.no_grad():
    logits = model(**batch).logits[0]
    made = model.generate(**batch, do_sample=False, max_new_tokens=steps)
  new = made[0, batch["input_ids"].shape[1]:]
  return (processor.tokenizer.decode(new, skip_special_tokens=True).strip(),
          logits.float().numpy())


def logits_of(run: Any, images: list[Any], words: str,
              **fields: Any) -> np.ndarray:
  """f32[L,V] of a prompt, all of it in one row, with `fields` of a batch."""
  renderer = run.renderer
  _, places = run.reader.places(images, renderer.tokens_per_image,
                                renderer.frame)
  example = question(words, images)
  rendered = renderer.prompt(example, places)
  pixels, boxes = run.read(images)
  n = len(rendered)
  specials = len(pixels) * run.parts.tokens_per_image
  index = np.where(rendered.visual < -1, specials - 2 - rendered.visual,
                   rendered.visual)
  batch = dict(
      tokens=rendered.tokens[None], visual_index=index[None].astype(np.int32),
      positions=np.arange(n)[None], segment_ids=np.ones((1, n), np.int32),
      images=pixels[None], image_boxes=boxes[None],
      image_segment_ids=np.ones((1, len(pixels)), np.int32),
      extras={name: np.asarray(x)[None, None]
              for name, x in run.extras(example).items()}, **fields)
  # As one program: op by op, each would be compiled alone.
  return np.asarray(jax.jit(lambda params, batch: run.model.apply(
      {"params": params}, batch, method=_logits)[0])(run.params, batch))


def _logits(model: Any, batch: Any) -> Any:
  return model.logits(model(batch)["hidden"])
