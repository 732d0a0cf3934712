"""What config.json says, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from align_jax.errors import InputError
from align_jax.hub.foreign_config import ForeignConfigError
from align_jax.hub.pretrained import (
    load_processor,
    load_tokenizer,
    read_spec,
)
from align_jax.ops.rope import Llama3Scaling


def _write(folder: Path, **fields: Any) -> Path:
  (folder / "config.json").write_text(json.dumps(
      {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
      | fields))
  return folder


def test_everything_not_understood_is_named_at_once(tmp_path: Path) -> None:
  folder = _write(
      tmp_path, hidden_act="gelu", sliding_window=512,
      rope_scaling={"type": "dynamic", "factor": 4.0}, num_attention_heads=7,
      quantization_config={"bits": 4}, pretraining_tp=2,
      transformers_version="4.40", use_cache=True, unused=None)
  with pytest.raises(ForeignConfigError) as error:
    read_spec(folder)
  assert str(error.value) == """\
this 'llama' config.json cannot be followed:
  hidden_act 'gelu' is not implemented (known: 'silu')
  pretraining_tp 2 is not implemented (known: 1)
  rope_type 'dynamic' is not implemented (known: 'default', 'linear', \
'llama3', 'yarn', 'longrope')
  unknown field sliding_window = 512; it may change what the model computes
  unknown field quantization_config = {'bits': 4}; it may change what the \
model computes
  width 64 does not divide into 7 heads; give head_width"""


@pytest.mark.parametrize("rope", [
    dict(rope_theta=5e5, rope_scaling={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
    dict(rope_parameters={
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}),
])
def test_both_spellings_of_rope(tmp_path: Path, rope: dict) -> None:
  config = read_spec(_write(tmp_path, **rope)).config
  assert config.rope_theta == 5e5
  assert config.rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)


def test_rope_fields_that_are_missing_or_unknown(tmp_path: Path) -> None:
  folder = _write(tmp_path, rope_parameters={
      "rope_type": "llama3", "factor": 8.0, "attention_factor": 2.0})
  with pytest.raises(ForeignConfigError) as error:
    read_spec(folder)
  assert "unknown field rope_parameters.attention_factor" in str(error.value)
  assert "without low_freq_factor, high_freq_factor" in str(error.value)


def test_unknown_models_name_the_nearest(tmp_path: Path) -> None:
  with pytest.raises(InputError, match="unknown model_type 'lama'; did you "
                                       "mean 'llama'"):
    read_spec(_write(tmp_path, model_type="lama"))


def test_a_folder_without_config(tmp_path: Path) -> None:
  with pytest.raises(InputError, match="no config.json in"):
    read_spec(tmp_path)


def test_a_part_that_is_not_there(tmp_path: Path) -> None:
  with pytest.raises(InputError, match="'clip' model, which has no 'decoder'"):
    read_spec(_write(tmp_path, model_type="clip"), part="decoder")


def test_no_tokenizer_and_no_processor(tmp_path: Path) -> None:
  with pytest.raises(InputError, match="no tokenizer in"):
    load_tokenizer(tmp_path)
  with pytest.raises(InputError, match="no preprocessor_config.json in"):
    load_processor(tmp_path)


@pytest.mark.parametrize("name", [
    "CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPFeatureExtractor"])
def test_processors_come_in_their_pil_form(tmp_path: Path, name: str) -> None:
  (tmp_path / "preprocessor_config.json").write_text(json.dumps({
      ("feature_extractor_type" if "Extractor" in name
       else "image_processor_type"): name, "size": 32}))
  assert type(load_processor(tmp_path)).__name__ == "CLIPImageProcessorPil"


def test_pixels_that_no_tower_here_gets_are_refused(tmp_path: Path) -> None:
  _write(tmp_path, model_type="siglip_vision_model")
  (tmp_path / "preprocessor_config.json").write_text(json.dumps({
      "image_processor_type": "SiglipImageProcessor", "do_rescale": False,
      "do_normalize": False, "rescale_factor": 1 / 127.5}))
  with pytest.raises(ForeignConfigError, match="(?s)do_rescale False.*"
                     "do_normalize False.*rescale_factor 0.00784"):
    read_spec(tmp_path)
  (tmp_path / "preprocessor_config.json").write_text(json.dumps({
      "image_processor_type": "SiglipImageProcessor", "do_rescale": None,
      "rescale_factor": 0.00392156862745098}))
  assert read_spec(tmp_path).kind == "siglip"


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_damaged_json_is_said_by_name(
    name: str, text: str, tmp_path: Path) -> None:
  (_write(tmp_path) / name).write_text(text)
  with pytest.raises(InputError, match=f"/{name} (is no|holds no) "):
    read_spec(tmp_path)


def test_code_of_a_checkpoint_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """Not even where a user could be asked whether it may."""
  ran = tmp_path / "ran"
  (tmp_path / "mine.py").write_text(
      f"open({str(ran)!r}, 'w').close()\nclass Mine: pass\n")
  code = {"AutoConfig": "mine.Mine", "AutoTokenizer": ["mine.Mine", None],
          "AutoModel": "mine.Mine", "AutoImageProcessor": "mine.Mine"}
  _write(tmp_path, auto_map=code, model_type="mine")
  (tmp_path / "tokenizer.json").write_text("{}")
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(
      {"auto_map": code, "tokenizer_class": "Mine"}))
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(
      {"auto_map": code, "image_processor_type": "MineImageProcessor"}))
  monkeypatch.setattr("builtins.input", lambda *_: "y")
  for load in (read_spec, load_tokenizer, load_processor):
    with pytest.raises(InputError):
      load(tmp_path)
  assert not ran.exists()
