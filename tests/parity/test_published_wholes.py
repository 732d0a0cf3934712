"""Whole models at their published sizes: every tensor has its place.

No weights: the reference is built without memory (torch's meta device), ours
abstractly. A config is what its checkpoint's config.json says beyond the
defaults.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from align_jax.build import build, param_shapes  # noqa: E402
from align_jax.config import MeshConfig  # noqa: E402
from align_jax.errors import InputError  # noqa: E402
from align_jax.hub import pretrained  # noqa: E402
from align_jax.hub.whole import model_config  # noqa: E402
from align_jax.parallel.mesh import make_mesh  # noqa: E402
from tests.connectors.published import Memory  # noqa: E402

_VICUNA = dict(model_type="llama", hidden_size=4096, num_hidden_layers=32,
               num_attention_heads=32, intermediate_size=11_008,
               rms_norm_eps=1e-5)


def _instructblip(rows: int) -> Any:
  return transformers.InstructBlipForConditionalGeneration, (
      transformers.InstructBlipConfig(
          qformer_config=dict(vocab_size=30_523),
          text_config=_VICUNA | dict(vocab_size=rows)))


def _ovis2(**text: Any) -> Any:
  return transformers.Ovis2ForConditionalGeneration, transformers.Ovis2Config(
      vision_config=dict(image_size=448, hidden_stride=2, vocab_size=65_536),
      text_config=dict(model_type="qwen2", vocab_size=151_936) | text,
      vocab_size=151_936, hidden_size=text["hidden_size"],
      tie_word_embeddings=True)


# name -> (model, config), tokens of an image
WHOLES = {
    # As first written, and since the image has a token of its own.
    "Salesforce/instructblip-vicuna-7b": (_instructblip(32_001), 32),
    "Salesforce/instructblip-vicuna-7b, padded": (
        _instructblip(32_064), 32),
    "AIDC-AI/Ovis2-1B": (_ovis2(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
        num_attention_heads=14, num_key_value_heads=2), 256),
}


@pytest.mark.parametrize("name", WHOLES)
def test_every_tensor_has_its_place(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  (kind, config), tokens = WHOLES[name]
  config.architectures = [kind.__name__]
  config.save_pretrained(tmp_path)
  with torch.device("meta"):
    model = kind(config)
  state = {k: np.broadcast_to(np.float32(0), tuple(v.shape))
           for k, v in model.state_dict().items()}
  if getattr(config, "tie_word_embeddings", False):
    state.pop("lm_head.weight", None)
  monkeypatch.setattr(pretrained, "open_weights", lambda spec: Memory(state))
  parts = build(model_config(tmp_path))
  assert parts.tokens_per_image == tokens
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  monkeypatch.setattr("align_jax.build.check_sharded", lambda *_: None)
  shapes = param_shapes(parts, mesh)
  own = {part: spec.held(shapes, f"{part}/")
         for part, spec in parts.specs.items()}
  pretrained.check_parts(parts.specs, own)  # strict in both directions
  count = lambda arrays: sum(np.prod(x.shape, dtype=np.int64)
                             for x in arrays.values())
  assert count(shapes) == count(state)
  state["language_model.model.layers.3.mlp.up_proj.bias"] = np.zeros(3)
  with pytest.raises(InputError, match="unexpected"):
    pretrained.check_parts(parts.specs, own)
