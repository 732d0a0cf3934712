"""config.json of the decoders: as published, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from align_jax.decoders.transformer import DecoderConfig
from align_jax.errors import InputError
from align_jax.hub.foreign_config import ForeignConfigError
from align_jax.hub.keymaps import FAMILIES
from align_jax.hub.pretrained import read_spec
from align_jax.ops.rope import LinearScaling, LongRope, YarnScaling

# What the published files say, without what any file says (dtype, tokens ...).
PUBLISHED: dict[str, dict[str, Any]] = {
    "SmolLM2-135M-Instruct": dict(
        model_type="llama", attention_bias=False, hidden_act="silu",
        hidden_size=576, intermediate_size=1536, is_llama_config=True,
        max_position_embeddings=8192, mlp_bias=False, num_attention_heads=9,
        num_hidden_layers=30, num_key_value_heads=3, pretraining_tp=1,
        rms_norm_eps=1e-5, rope_interleaved=False, rope_scaling=None,
        rope_theta=100000, tie_word_embeddings=True, vocab_size=49152,
        **{"transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}}),
    "vicuna-7b-v1.5-16k": dict(
        model_type="llama", hidden_act="silu", hidden_size=4096,
        intermediate_size=11008, max_position_embeddings=4096,
        max_sequence_length=16384, num_attention_heads=32,
        num_hidden_layers=32, num_key_value_heads=32, pretraining_tp=1,
        rms_norm_eps=1e-5, rope_scaling={"factor": 4.0, "type": "linear"},
        tie_word_embeddings=False, vocab_size=32000),
    "Mistral-7B-v0.1": dict(
        model_type="mistral", hidden_act="silu", hidden_size=4096,
        intermediate_size=14336, max_position_embeddings=32768,
        num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8,
        rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=4096,
        tie_word_embeddings=False, vocab_size=32000),
    "Qwen2.5-7B-Instruct": dict(
        model_type="qwen2", hidden_act="silu", hidden_size=3584,
        intermediate_size=18944, max_position_embeddings=32768,
        max_window_layers=28, num_attention_heads=28, num_hidden_layers=28,
        num_key_value_heads=4, rms_norm_eps=1e-6, rope_theta=1000000.0,
        sliding_window=131072, tie_word_embeddings=False,
        use_sliding_window=False, vocab_size=152064),
    "Qwen3-0.6B": dict(
        model_type="qwen3", attention_bias=False, head_dim=128,
        hidden_act="silu", hidden_size=1024, intermediate_size=3072,
        max_position_embeddings=40960, max_window_layers=28,
        num_attention_heads=16, num_hidden_layers=28, num_key_value_heads=8,
        rms_norm_eps=1e-6, rope_scaling=None, rope_theta=1000000,
        sliding_window=None, tie_word_embeddings=True,
        use_sliding_window=False, vocab_size=151936),
    "gemma-2b": dict(
        model_type="gemma", attention_bias=False, head_dim=256,
        hidden_act="gelu", hidden_activation=None, hidden_size=2048,
        intermediate_size=16384, max_position_embeddings=8192,
        num_attention_heads=8, num_hidden_layers=18, num_key_value_heads=1,
        rms_norm_eps=1e-6, rope_scaling=None, rope_theta=10000.0,
        vocab_size=256000),
    "gemma-2-27b": dict(
        model_type="gemma2", attention_bias=False, attn_logit_softcapping=50.0,
        cache_implementation="hybrid", final_logit_softcapping=30.0,
        head_dim=128, hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh", hidden_size=4608,
        intermediate_size=36864, max_position_embeddings=8192,
        num_attention_heads=32, num_hidden_layers=46, num_key_value_heads=16,
        query_pre_attn_scalar=144, rms_norm_eps=1e-6, rope_theta=10000.0,
        sliding_window=4096, sliding_window_size=4096, vocab_size=256000),
    "gemma-3-1b-it": dict(
        model_type="gemma3_text", attention_bias=False,
        attn_logit_softcapping=None, cache_implementation="hybrid",
        final_logit_softcapping=None, head_dim=256,
        hidden_activation="gelu_pytorch_tanh", hidden_size=1152,
        intermediate_size=6912, max_position_embeddings=32768,
        num_attention_heads=4, num_hidden_layers=26, num_key_value_heads=1,
        query_pre_attn_scalar=256, rms_norm_eps=1e-6,
        rope_local_base_freq=10000, rope_scaling=None, rope_theta=1000000,
        sliding_window=512, sliding_window_pattern=6, vocab_size=262144),
    # The text part of the larger ones says only what is not the default.
    "gemma-3-4b-it, text_config": dict(
        model_type="gemma3_text", hidden_size=2560, intermediate_size=10240,
        num_hidden_layers=34,
        rope_scaling={"factor": 8.0, "rope_type": "linear"},
        sliding_window=1024),
    "Phi-3-mini-4k-instruct": dict(
        model_type="phi3", attention_bias=False, embd_pdrop=0.0,
        hidden_act="silu", hidden_size=3072, intermediate_size=8192,
        max_position_embeddings=4096, num_attention_heads=32,
        num_hidden_layers=32, num_key_value_heads=32,
        original_max_position_embeddings=4096, resid_pdrop=0.0,
        rms_norm_eps=1e-5, rope_scaling=None, rope_theta=10000.0,
        sliding_window=2047, tie_word_embeddings=False, vocab_size=32064),
    "Phi-4-mini-instruct": dict(
        model_type="phi3", attention_bias=False, embd_pdrop=0.0,
        full_attn_mod=1, hidden_act="silu", hidden_size=3072,
        intermediate_size=8192, interpolate_factor=1, lm_head_bias=False,
        max_position_embeddings=131072, mlp_bias=False,
        num_attention_heads=24, num_hidden_layers=32, num_key_value_heads=8,
        original_max_position_embeddings=4096, partial_rotary_factor=0.75,
        resid_pdrop=0.0, rms_norm_eps=1e-5, rope_theta=10000.0,
        rope_scaling={"type": "longrope", "long_factor": [2] * 48,
                      "short_factor": [1.0] * 48},
        sliding_window=262144, tie_word_embeddings=True, vocab_size=200064),
}
READ: dict[str, dict[str, Any]] = {
    "SmolLM2-135M-Instruct": dict(head_width=64, rope_theta=1e5, windows=()),
    "vicuna-7b-v1.5-16k": dict(rope_scaling=LinearScaling(4.0)),
    "Mistral-7B-v0.1": dict(windows=(4096,) * 32, qkv_bias=False),
    "Qwen2.5-7B-Instruct": dict(windows=(), qkv_bias=True, o_bias=False,
                                kv_heads=4),
    "Qwen3-0.6B": dict(qk_norm=True, head_width=128, qkv_bias=False),
    "gemma-2b": dict(activation="gelu_tanh", norm_offset=1.0, tied_head=True,
                     embed_scale=2048 ** 0.5, kv_heads=1),
    "gemma-2-27b": dict(
        windows=(4096, 0) * 23, attn_scale=1 / 12, attn_soft_cap=50.0,
        logit_soft_cap=30.0, post_norms=True, qk_norm=False),
    "gemma-3-1b-it": dict(
        windows=((512,) * 5 + (0,)) * 4 + (512,) * 2, rope_theta=1e6,
        local_rope_theta=1e4, rope_scaling=None, qk_norm=True,
        logit_soft_cap=0.0),
    "gemma-3-4b-it, text_config": dict(
        heads=8, kv_heads=4, head_width=256, vocab_size=262_208,
        rope_theta=1e6, local_rope_theta=1e4,
        rope_scaling=LinearScaling(8.0), max_positions=131_072),
    "Phi-3-mini-4k-instruct": dict(windows=(2047,) * 32, rotary_width=96,
                                   rope_scaling=None),
    "Phi-4-mini-instruct": dict(
        head_width=128, rotary_width=96, rope_scaling=LongRope(
            (1.0,) * 48, (2.0,) * 48, 4096,
            # sqrt(1 + ln 32 / ln 4096)
            (1 + 5 / 12) ** 0.5)),
}


def _read(folder: Path, fields: dict[str, Any]) -> DecoderConfig:
  (folder / "config.json").write_text(json.dumps(fields))
  return read_spec(folder).config


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_configs(name: str, tmp_path: Path) -> None:
  """They are read; what is written says the same."""
  config = _read(tmp_path, PUBLISHED[name])
  assert {field: getattr(config, field)
          for field in READ[name]} == READ[name]
  family = FAMILIES.get(PUBLISHED[name]["model_type"])
  assert _read(tmp_path, family.write_config(config)) == config


def test_yarn_as_qwen_documents_it(tmp_path: Path) -> None:
  config = _read(tmp_path, PUBLISHED["Qwen2.5-7B-Instruct"] | dict(
      rope_scaling={"factor": 4.0, "type": "yarn",
                    "original_max_position_embeddings": 32768}))
  assert isinstance(config.rope_scaling, YarnScaling)
  assert config.rope_scaling.gain == pytest.approx(1.1386294361)  # .1 ln 4 + 1


REFUSED = {
    "windows of kinds": (
        "Qwen3-0.6B", dict(layer_types=["chunked_attention"] * 27),
        ["layer_types 'chunked_attention' is not implemented (known: "
         "'full_attention', 'sliding_attention')",
         "27 layer_types for 28 layers"]),
    "windows without a width": (
        "Qwen3-0.6B", dict(layer_types=["sliding_attention"] * 28),
        ["layer_types has 'sliding_attention', but sliding_window is None"]),
    "gelu": ("gemma-2-27b", dict(hidden_activation="gelu"),
             ["hidden_activation 'gelu' is not implemented"]),
    "both ways": ("gemma-3-1b-it", dict(use_bidirectional_attention=True),
                  ["unknown field use_bidirectional_attention = True"]),
    "a soft cap that the reference passes over": (
        "gemma-3-1b-it", dict(attn_logit_softcapping=50.0),
        ["unknown field attn_logit_softcapping = 50.0"]),
    "local scaling": (
        "gemma-3-1b-it", dict(rope_parameters={"sliding_attention": {
            "rope_type": "linear", "factor": 2.0}}),
        ["a scaling in the layers with a window is not implemented"]),
    "local dynamic": (
        "gemma-3-1b-it", dict(rope_parameters={"full_attention": {
            "rope_type": "dynamic", "factor": 2.0}}),
        ["rope_type 'dynamic' is not implemented (known: 'default', "]),
    "another kind of layer": (
        "gemma-3-1b-it", dict(rope_parameters={"no_attention": {
            "rope_type": "default"}}),
        ["unknown field rope_parameters.no_attention"]),
    "divisors": (
        "Phi-4-mini-instruct", dict(
            resid_pdrop=0.1, full_attn_mod=2, partial_rotary_factor=0.5,
            lm_head_bias=True),
        ["resid_pdrop 0.1 is not implemented (known: 0)",
         "full_attn_mod 2 is not implemented",
         "unknown field lm_head_bias = True",
         "rope_scaling.short has 48 divisors, rotary_width 64 needs 32"]),
    "part of a Llama's head": (
        "SmolLM2-135M-Instruct", dict(partial_rotary_factor=0.5,
                                      rope_interleaved=True),
        ["rope_interleaved True is not implemented",
         "unknown field partial_rotary_factor = 0.5"]),
    "mrope": (
        "Qwen2.5-7B-Instruct", dict(rope_scaling={
            "type": "mrope", "mrope_section": [16, 24, 24]}, use_mrope=True),
        ["use_mrope True is not implemented",
         "rope_type 'mrope' is not implemented"]),
    "layers of other kinds": (
        "Mistral-7B-v0.1", dict(layer_types=["sliding_attention"] * 32),
        ["unknown field layer_types"]),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_not_implemented_is_refused_by_name(
    case: str, tmp_path: Path) -> None:
  name, change, says = REFUSED[case]
  with pytest.raises(ForeignConfigError) as error:
    _read(tmp_path, PUBLISHED[name] | change)
  for text in says:
    assert text in str(error.value)
  assert str(error.value).count("\n") == len(says)


def test_a_family_writes_only_what_its_config_can_say() -> None:
  config = DecoderConfig(
      vocab_size=9, width=16, layers=2, heads=4, mlp_width=8, qk_norm=True,
      logit_soft_cap=3.0, windows=(4, 0))
  with pytest.raises(InputError) as error:
    FAMILIES.get("llama").write_config(config)
  assert str(error.value) == """\
a 'llama' config.json cannot say:
  windows = (4, 0) (it can only be ())
  qk_norm = True (it can only be False)
  logit_soft_cap = 3.0 (it can only be 0.0)"""
  plain = dataclasses.replace(config, qk_norm=False, logit_soft_cap=0.0,
                              windows=(4, 5))
  with pytest.raises(InputError, match=r"windows = \(4, 5\)"):
    FAMILIES.get("mistral").write_config(plain)
