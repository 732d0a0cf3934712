"""Connectors against transformers' own modules, weights loaded by the tables.
"""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # tiny models: threads only wait for each other

from transformers.models.idefics2 import modeling_idefics2  # noqa: E402
from transformers.models.idefics3 import modeling_idefics3  # noqa: E402
from transformers.models.internvl import modeling_internvl  # noqa: E402

from align_jax.hub.keymaps import connectors as maps  # noqa: E402
from tests.connectors import published  # noqa: E402
from tests.parity.towers_reference import difference, randomise  # noqa: E402

C, D, P = 8, 12, 16


def _features(patches: int = P, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=(2, 2, patches, C)).astype(
      np.float32)


def _ours(name: str, rules: Any, tensors: Any, features: np.ndarray,
          options: dict[str, Any], **family: Any) -> tuple[Any, Any]:
  """(what ours gives, a function that runs it with other parameters)."""
  ctx = published.context(np.ones(features.shape[:2], "i"), D)
  module = published.make(name, D, **options)
  shapes = published.shapes_of(module, features, ctx)
  params = published.load(shapes, rules, tensors, **family)
  run = lambda params: published.apply(module, params, features, ctx)
  return run(params), lambda change: run(change(dict(params)))


def _arrays(module: Any) -> dict[str, np.ndarray]:
  return {k: v.detach().numpy() for k, v in module.state_dict().items()}


def _flat(features: np.ndarray) -> Any:
  return torch.from_numpy(features.reshape(-1, *features.shape[2:]).copy())


def _agree(ours: Any, theirs: Any) -> float:
  return difference(np.asarray(ours.tokens).reshape(theirs.shape), theirs)


@pytest.mark.parametrize("factor", [2, 4])
def test_internvl_pixel_shuffle(factor: int) -> None:
  config = transformers.InternVLConfig(
      vision_config=dict(hidden_size=C, num_hidden_layers=1,
                         num_attention_heads=2, intermediate_size=8,
                         image_size=16, patch_size=4),
      text_config=dict(model_type="llama", hidden_size=D, num_hidden_layers=1,
                       num_attention_heads=2, intermediate_size=8,
                       vocab_size=16),
      downsample_ratio=1 / factor)
  projector = modeling_internvl.InternVLMultiModalProjector(config).eval()
  randomise(projector)
  features = _features()
  x = _flat(features).reshape(-1, 4, 4, C)
  # The method reads nothing of the model it belongs to.
  x = modeling_internvl.InternVLModel.pixel_shuffle(None, x, 1 / factor)
  with torch.no_grad():
    theirs = projector(x.reshape(len(x), -1, x.shape[-1]))
  ours, again = _ours("pixel_shuffle", maps.PIXEL_SHUFFLE_INTERNVL,
                      _arrays(projector), features, dict(factor=factor))
  assert _agree(ours, theirs) < 1e-4
  if factor == 2:
    changed = again(lambda p: p | {"norm_scale_c": p["norm_scale_c"] * 0 + 1})
    assert _agree(changed, theirs) > 1e-2


def test_idefics3_pixel_shuffle() -> None:
  config = transformers.Idefics3Config(
      vision_config=dict(hidden_size=C), scale_factor=2,
      text_config=dict(model_type="llama", hidden_size=D,
                       num_attention_heads=2))
  connector = modeling_idefics3.Idefics3Connector(config).eval()
  randomise(connector)
  features = _features()
  with torch.no_grad():
    theirs = connector(_flat(features))
  ours, _ = _ours("pixel_shuffle", maps.PIXEL_SHUFFLE_IDEFICS3,
                  _arrays(connector), features, dict(form="idefics3"))
  assert _agree(ours, theirs) < 1e-4


def test_idefics2_perceiver() -> None:
  config = transformers.Idefics2Config(
      vision_config=dict(hidden_size=C),
      perceiver_config=dict(
          hidden_size=D, resampler_n_latents=5, resampler_depth=2,
          resampler_n_heads=4, resampler_head_dim=6, num_key_value_heads=2),
      text_config=dict(model_type="mistral", hidden_size=D,
                       intermediate_size=20, num_attention_heads=2))
  config._attn_implementation = "eager"
  config.perceiver_config._attn_implementation = "eager"
  connector = modeling_idefics2.Idefics2Connector(config).eval()
  randomise(connector)
  features = _features(patches=7)
  with torch.no_grad():
    theirs = connector(_flat(features), torch.ones(4, 7, dtype=torch.long))
  ours, again = _ours(
      "perceiver", maps.PERCEIVER_IDEFICS2, _arrays(connector), features,
      dict(form="idefics2", latents=5, depth=2, heads=4, kv_heads=2,
           head_width=6, in_width=20))
  assert _agree(ours, theirs) < 1e-4

  def heads_in_turn(params: dict[str, Any]) -> dict[str, Any]:
    layers = params["layers"]
    return params | {"layers": layers | {
        "k_egk": layers["k_egk"][:, :, ::-1]}}

  assert _agree(again(heads_in_turn), theirs) > 1e-2


@pytest.mark.parametrize("patches,stride", [(16, 2), (25, 2), (9, 1)])
def test_ovis2(patches: int, stride: int) -> None:
  """A whole Ovis2Model's image features, the tower's put in by hand.

  Where the stride does not divide the grid it is filled with zeros by hand,
  as Ovis' own code does it; transformers adds them to the wrong axes.
  """
  config = transformers.Ovis2Config(
      vision_config=dict(hidden_size=C, num_hidden_layers=1,
                         num_attention_heads=2, intermediate_size=8,
                         image_size=16, patch_size=4, vocab_size=30,
                         hidden_stride=stride,
                         num_visual_indicator_tokens=5),
      text_config=dict(model_type="qwen2", hidden_size=D, num_hidden_layers=1,
                       num_attention_heads=2, num_key_value_heads=2,
                       intermediate_size=8, vocab_size=16),
      hidden_size=D, image_token_id=1, visual_indicator_token_ids=[2] * 5)
  model = transformers.Ovis2Model(config).eval()
  randomise(model)
  features = _features(patches)
  side = int(patches ** 0.5)
  spare = -side % stride
  filled = np.pad(features.reshape(2, 2, side, side, C), (
      (0, 0), (0, 0), (0, spare), (0, spare), (0, 0))).reshape(2, 2, -1, C)

  class Tower(torch.nn.Module):
    def forward(self, *_: Any, **__: Any) -> Any:
      return (_flat(filled),)

  model.vision_tower.transformer = Tower()
  with torch.no_grad():
    found = model.get_image_features(torch.zeros(4, 3, 16, 16))
  tensors = {k: v for k, v in _arrays(model).items()
             if "vision_tower" in k or "visual_embeddings" in k}
  ours, again = _ours("ovis", maps.OVIS2, tensors, features,
                      dict(words=30, stride=stride))
  assert _agree(ours, found.pooler_output) < 1e-4
  assert difference(ours.aux["special_xd"],
                    found.visual_indicator_features) == 0
  flat = again(lambda p: p | {"norm_scale_v": p["norm_scale_v"] * 0})
  assert _agree(flat, found.pooler_output) > 1e-2


def test_a_table_that_lacks_a_weight_is_refused_by_name() -> None:
  features = _features()
  ctx = published.context(np.ones((2, 2), "i"), D)
  module = published.make("pixel_shuffle", D, form="idefics3")
  shapes = published.shapes_of(module, features, ctx)
  wrong = {"modality_projection.proj.wieght": np.zeros((D, 4 * C))}
  with pytest.raises(ValueError) as error:
    published.load(shapes, maps.PIXEL_SHUFFLE_IDEFICS3, wrong)
  assert "missing 'modality_projection.proj.weight'" in str(error.value)
  assert "unexpected 'modality_projection.proj.wieght'" in str(error.value)
