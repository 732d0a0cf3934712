"""The whole VLM against transformers' LlavaForConditionalGeneration."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # tiny models: threads only wait for each other

from safetensors.numpy import load_file, save_file  # noqa: E402

from align_jax.connectors.mlp import MLP  # noqa: E402
from align_jax.decoders.transformer import init_cache  # noqa: E402
from align_jax.errors import InputError  # noqa: E402
from align_jax.hub.faces import load_decoder  # noqa: E402
from align_jax.hub.keymaps.llava import LlavaConfig  # noqa: E402
from align_jax.hub.pretrained import (  # noqa: E402
    load_params,
    read_spec,
    save_hf,
)
from align_jax.vlm import VLM  # noqa: E402

IMAGE, LENGTH, SLOTS = 60, 24, 2
VARIANTS = {
    "layer_-2": dict(),
    "layer_-1_class_token": dict(vision_feature_layer=-1,
                                 vision_feature_select_strategy="full"),
}


def reference(variant: str) -> Any:
  torch.manual_seed(0)
  config = transformers.LlavaConfig(
      vision_config=transformers.CLIPVisionConfig(
          hidden_size=16, intermediate_size=24, num_hidden_layers=3,
          num_attention_heads=2, image_size=8, patch_size=4),
      text_config=transformers.LlamaConfig(
          hidden_size=24, intermediate_size=40, num_hidden_layers=2,
          num_attention_heads=4, num_key_value_heads=2, vocab_size=61,
          bos_token_id=None, eos_token_id=None, pad_token_id=None),
      image_token_index=IMAGE, **VARIANTS[variant],
      attn_implementation="eager")
  model = transformers.LlavaForConditionalGeneration(config).eval()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      if weight.ndim == 1:
        weight.normal_(float("norm" in name and "bias" not in name), 0.3)
      elif "embed" in name or "lm_head" in name:
        weight.normal_(0.0, 0.5)
      else:
        gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
        weight.normal_(0.0, gain * weight[0].numel() ** -0.5)
  return model


def vlm(config: LlavaConfig) -> VLM:
  return VLM(
      config.tower.make(layer=config.layer, class_token=config.class_token),
      MLP(dim_out=config.decoder.width, vocab_size=config.decoder.vocab_size),
      config.decoder.make())


def batch_of(tokens_per_image: int) -> dict[str, Any]:
  """Row 0 holds two images, row 1 one, row 2 none and some padding."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, IMAGE, (3, LENGTH))
  index = np.full((3, LENGTH), -1)
  segments = np.ones((3, LENGTH), int)
  slots = np.zeros((3, SLOTS), int)
  for row, starts in enumerate([(2, 13), (5,), ()]):
    for slot, at in enumerate(starts):
      cut = slice(at, at + tokens_per_image)
      tokens[row, cut] = IMAGE
      index[row, cut] = slot * tokens_per_image + np.arange(tokens_per_image)
      slots[row, slot] = 1
  segments[2, 18:] = 0
  boxes = np.zeros((3, SLOTS, 4), int)
  boxes[slots > 0] = (0, 0, 8, 8)
  batch = dict(
      tokens=tokens, visual_index=index, segment_ids=segments,
      positions=np.tile(np.arange(LENGTH), (3, 1)),
      images=rng.integers(0, 256, (3, SLOTS, 8, 8, 3)),
      image_segment_ids=slots, image_boxes=boxes)
  return {k: v.astype(np.uint8 if k == "images" else np.int32)
          for k, v in batch.items()} | {"extras": {}}


def theirs_of(model: Any, config: LlavaConfig, batch: Any, rows: Any) -> dict:
  """The reference's inputs for these rows."""
  images = batch["images"][rows][batch["image_segment_ids"][rows] > 0]
  pixels = (images / 255.0 - config.tower.mean) / config.tower.std
  return dict(
      input_ids=torch.tensor(batch["tokens"][rows], dtype=torch.long),
      attention_mask=torch.tensor(batch["segment_ids"][rows]),
      pixel_values=None if not len(images) else torch.tensor(
          pixels.transpose(0, 3, 1, 2), dtype=torch.float32))


def run(m: VLM, batch: Any) -> jax.Array:
  return m.logits(m(batch)["hidden"])


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def pair(request: Any, tmp_path_factory: Any) -> Any:
  """(reference, config, our module, our params, batch, the folder)."""
  model = reference(request.param)
  folder = tmp_path_factory.mktemp("llava")
  model.save_pretrained(folder)
  spec = read_spec(folder)
  module = vlm(spec.config)
  batch = batch_of(spec.config.tower.patches + spec.config.class_token)
  shapes = jax.eval_shape(lambda: module.init(
      jax.random.key(0), batch, method=run)["params"])
  params, _ = load_params(spec, shapes)
  return model, spec.config, module, params, batch, folder


def difference(pair: Any, params: Any = None, module: Any = None) -> float:
  model, config, plain, loaded, batch, _ = pair
  ours = (module or plain).apply({"params": params or loaded}, batch,
                                 method=run)
  with torch.no_grad():
    theirs = model(**theirs_of(model, config, batch, slice(None))
                   ).logits.numpy()
  assert theirs.std() >= 1.0
  real = batch["segment_ids"] > 0
  return float(np.abs(np.asarray(ours)[real] - theirs[real]).max()
               / max(1.0, theirs.std()))


def test_logits(pair: Any) -> None:
  assert difference(pair) < 1e-4


def test_each_peculiarity_matters(pair: Any) -> None:
  _, config, _, params, batch, _ = pair
  other = dataclasses.replace(config, layer=-1 if config.layer == -2 else -2)
  assert difference(pair, module=vlm(other)) > 1e-2
  tower = dataclasses.replace(config.tower, activation="gelu")
  assert difference(
      pair, module=vlm(dataclasses.replace(config, tower=tower))) > 1e-3
  connector = {**params["connector"],
               "in_bias_f": params["connector"]["in_bias_f"] * 0}
  assert difference(pair, {**params, "connector": connector}) > 1e-2


def test_generation_token_for_token(pair: Any) -> None:
  """The two-image row, its visual tokens in the cache."""
  model, config, module, params, batch, _ = pair
  row = {k: v if k == "extras" else v[:1] for k, v in batch.items()}
  with torch.no_grad():
    want = model.generate(
        **theirs_of(model, config, batch, slice(0, 1)), do_sample=False,
        max_new_tokens=12, pad_token_id=0)[0, LENGTH:].numpy()

  def prefill(m: VLM, cache: Any) -> Any:
    x = m.embed(row["tokens"], row["visual_index"], m.encode_images(row))
    hidden, cache = m.decode(x, row["positions"], row["segment_ids"], cache)
    return m.logits(hidden[:, -1]).argmax(-1), cache

  def follow(m: VLM, token: Any, at: Any, cache: Any) -> Any:
    hidden, cache = m.decode(m.decoder.embed(token[:, None]), at,
                             jnp.ones((1, 1), jnp.int32), cache)
    return m.logits(hidden[:, -1]).argmax(-1), cache

  weights = {"params": params}
  cache = init_cache(config.decoder, 1, LENGTH + 12, jnp.float32)
  token, cache = module.apply(weights, cache, method=prefill)
  step = jax.jit(lambda token, at, cache: module.apply(
      weights, token, at, cache, method=follow))
  made = [int(token[0])]
  for i in range(11):
    token, cache = step(token, jnp.full((1, 1), LENGTH + i), cache)
    made.append(int(token[0]))
  np.testing.assert_array_equal(made, want)


def test_there_and_back_byte_for_byte(pair: Any, tmp_path: Path) -> None:
  model, config, _, params, _, folder = pair
  save_hf(params, "llava", config, tmp_path)
  before = load_file(folder / "model.safetensors")
  after = load_file(tmp_path / "model.safetensors")
  assert before.keys() == after.keys()
  for key, value in before.items():
    assert value.tobytes() == after[key].tobytes(), key
  back, report = transformers.LlavaForConditionalGeneration.from_pretrained(
      tmp_path, output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"]
  for key, value in model.state_dict().items():
    assert torch.equal(value, back.state_dict()[key]), key
  assert read_spec(tmp_path).config == config


def _older(key: str) -> str:
  """As llava-hf's checkpoints of 2023 have it."""
  return key.replace("vision_tower.", "vision_tower.vision_model.")


def _inside(key: str) -> str:
  """As the keys are inside a running model."""
  if key.startswith("language_model.lm_head"):
    return key.removeprefix("language_model.")
  return "model." + key.replace("language_model.model.", "language_model.")


@pytest.mark.parametrize("spell", [_older, _inside])
def test_spellings_of_other_versions(pair: Any, tmp_path: Path,
                                     spell: Any) -> None:
  _, _, _, params, _, folder = pair
  tensors = load_file(folder / "model.safetensors")
  save_file({spell(k): v for k, v in tensors.items()},
            tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_bytes(
      (folder / "config.json").read_bytes())
  shapes = jax.eval_shape(lambda: params)
  loaded, _ = load_params(read_spec(tmp_path), shapes)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  for part in ("tower", "decoder"):
    spec = read_spec(tmp_path, part)
    loaded, _ = load_params(spec, shapes[part])
    jax.tree.map(np.testing.assert_array_equal, loaded, params[part])


def test_the_decoder_alone(pair: Any) -> None:
  _, _, _, params, _, folder = pair
  jax.tree.map(np.testing.assert_array_equal, load_decoder(folder).params,
               params["decoder"])


def test_faults_of_all_parts_are_listed_together(tmp_path: Path) -> None:
  (tmp_path / "config.json").write_text("""{"model_type": "llava",
    "projector_hidden_act": "relu", "vision_feature_layer": [-2, -5],
    "text_config": {"model_type": "lama"},
    "vision_config": {"model_type": "clip_vision_model", "hidden_act": "selu",
                      "projection_dim": 8, "vocab_size": 32000}}""")
  with pytest.raises(InputError) as error:
    read_spec(tmp_path)
  text = str(error.value)
  for part in ("projector_hidden_act 'relu'", "vision_feature_layer [-2, -5]",
               "text_config: unknown model_type 'lama'", "hidden_act 'selu'"):
    assert part in text
  assert "vocab_size" not in text
